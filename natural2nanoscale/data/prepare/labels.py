"""Masks as they come (class ids, 0 and 255, colours) to class ids: one rule for the whole data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from natural2nanoscale.data.classes import IGNORE_ID, MAX_CLASSES, Classes, palette
from natural2nanoscale.data.prepare.sources import MaskPixels, Page
from natural2nanoscale.errors import InputError

GREY = 0x010101  # times a value: the grey of that value


@dataclass(frozen=True)
class PageCodes:
    """Pixel counts of a mask read as values and as colours 0xRRGGBB; None where it is not of that kind.

    palette: the colours of the values in use, of a palette picture.
    """

    page: Page
    values: dict[int, int] | None
    colors: dict[int, int] | None
    palette: dict[int, int] = field(default_factory=dict)

    def color_of_value(self) -> dict[int, int]:
        """Colour of every value in use; in a coloured mask the values are its greys."""
        if self.values is None:
            return {color & 0xFF: color for color in self.colors if color % GREY == 0}
        return {value: self.palette.get(value, value * GREY) for value in self.values}

    def colors_without(self, values: Iterable[int]) -> Counter:
        """Pixels of every colour, those left out that have one of these values."""
        shown, rest = self.color_of_value(), Counter()
        if self.values is None:
            gone = {shown[value] for value in values if value in shown}
            return Counter({color: n for color, n in self.colors.items() if color not in gone})
        for value, n in self.values.items():
            if value not in values:
                rest[shown[value]] += n
        return rest


@dataclass(frozen=True)
class LabelRule:
    """How mask pixels become class ids: `table` maps every value, or colour 0xRRGGBB, that occurs.

    Where masks are read by colour, `values` maps what goes by a mask's own value, before its colour.
    """

    classes: Classes
    by_color: bool
    table: dict[int, int]
    notes: tuple[str, ...]
    values: dict[int, int] = field(default_factory=dict)

    def apply(self, mask: MaskPixels) -> np.ndarray:
        """(H,W) uint8 class ids of a mask whose values or colours are all in the table."""
        codes = np.array(sorted(self.table))
        ids = np.array([self.table[int(code)] for code in codes], np.uint8)
        ids = ids[np.searchsorted(codes, mask.codes(self.by_color))]
        if self.values:
            own = mask.values if mask.colors is None else np.where(mask.colors % GREY, -1, mask.colors & 0xFF)
            for value, to in self.values.items():
                ids[own == value] = to
        return ids


def decide_labels(
    pages: list[PageCodes],
    names: tuple[str, ...] = (),
    colors: tuple[tuple[str, int], ...] = (),
    mapping: dict[int | str, int] | None = None,
) -> LabelRule:
    """The rule that fits all masks, or an InputError that names file, values and pixel counts.

    names: the classes in the order of their ids. colors: (name, 0xRRGGBB) of the classes in that order.
    mapping: class id or IGNORE_ID for mask values (int) and for colours ("#rrggbb"); it goes before all else. In a
    coloured mask a value is a grey; in a palette picture it is the index.
    """
    mapping = mapping or {}
    seen: dict[int, int] = {}  # colours of palette values: where files disagree, only the colours tell the classes
    shuffled = any(seen.setdefault(value, color) != color for page in pages for value, color in page.palette.items())
    by_color = bool(colors) or shuffled or any(page.values is None for page in pages)
    if by_color:
        for page in pages:
            if page.colors is None:
                raise InputError(
                    f"{page.page} has values beyond 255 where colours are expected: save all masks in one form"
                )
        return _color_rule(pages, names, colors, mapping)
    if any(isinstance(key, str) for key in mapping):
        raise InputError("--map names colours but no mask is coloured: give the masks' values, such as 128=1")
    return _value_rule(pages, names, mapping)


def _value_rule(pages: list[PageCodes], names: tuple[str, ...], mapping: dict[int, int]) -> LabelRule:
    total = _total(page.values for page in pages)
    rest = sorted(set(total) - set(mapping))
    table = {value: to for value, to in mapping.items() if value in total}
    notes = []
    binary = 255 in rest and set(rest) <= {0, 255} and not any(0 < to < IGNORE_ID for to in table.values())
    if binary and len(names) > 2:
        raise InputError(
            f"the masks hold only 0 and 255, which is two classes, but {len(names)} are named: name two with "
            "--classes, or pass --map 255=ignore if 255 marks unlabelled pixels"
        )
    if binary:
        table[255] = 1
        names = names or ("background", "foreground")
        notes.append("mask value 255 is class 1: the masks hold only 0 and 255")
    elif 255 in rest:
        table[255] = IGNORE_ID
        notes.append(f"mask value 255 is ignored ({total[255]} px)")
    rest = [value for value in rest if value != 255]
    used = set(rest) | {to for to in table.values() if to != IGNORE_ID}
    count = len(names) or next(n for n in range(len(used) + 1) if n not in used)  # ids without gaps
    strays = [value for value in rest if not 0 <= value < count]
    if strays:
        ranks = ",".join(f"{v}={i}" for i, v in enumerate(sorted(total)) if v != i)
        remedy = f"map or ignore them, `--map {','.join(f'{v}=ignore' for v in strays[:4])}`"
        if not names and len(total) <= MAX_CLASSES:
            remedy += f" or `--map {ranks}`, or name all classes with --classes"
        if len(strays) > MAX_CLASSES:
            remedy = "save them as class ids, since so many values look like object numbers or grey values"
        expected = f"0..{count - 1}" if count else "ids that count from 0"
        _refuse_strays([(p.page, p.values) for p in pages], strays, str, expected, remedy)
    table |= {value: value for value in rest}
    return LabelRule(_classes(names, count, table), False, table, tuple(notes))


def _color_rule(
    pages: list[PageCodes], names: tuple[str, ...], colors: tuple[tuple[str, int], ...], mapping: dict[int | str, int]
) -> LabelRule:
    known = {int(key[1:], 16): to for key, to in mapping.items() if isinstance(key, str)}
    values = _own_values(pages, {key: to for key, to in mapping.items() if isinstance(key, int)}, known)
    left = [page.colors_without(values) for page in pages]
    total, notes = _total(left), []
    if colors:
        names = tuple(name for name, _color in colors)
        ids = {color: i for i, (_name, color) in enumerate(colors)}
    else:
        standard = [packed_color(color) for color in palette(len(names) or MAX_CLASSES)]
        ids = {color: i for i, color in enumerate(standard)}
        if not names:  # the palette's first K colours: blends must not stand for classes that nobody has
            used = {ids[code] for code in total if code in ids and code not in known}
            count = next(n for n in range(len(used) + 1) if n not in used)
            ids = {color: i for color, i in ids.items() if i < count}
        notes.append("mask colours are the standard palette: " + ", ".join(f"{hex_color(c)} = {ids[c]}" for c in ids))
    table = {code: known.get(code, ids.get(code, -1)) for code in total}
    strays = [code for code, to in table.items() if to < 0]
    if strays:
        strays.sort(key=lambda code: -total[code])
        if len(strays) > MAX_CLASSES:
            remedy = "save the masks without smoothing, resizing or JPEG, since so many colours cannot be classes"
        else:
            common = sorted(total, key=lambda code: -total[code])[:8]
            remedy = (
                "list all classes as `--colors \""
                + ",".join(f"class_{i}={hex_color(code)}" for i, code in enumerate(common))
                + f"\"`, or ignore some as `--map \"{hex_color(strays[0])}=ignore\"`"
            )  # fmt: skip
        expected = ", ".join(hex_color(code) for code in list(ids)[:8]) or "#ff0000 (0), #00ff00 (1), #0000ff (2)"
        _refuse_strays([(p.page, n) for p, n in zip(pages, left, strict=True)], strays, hex_color, expected, remedy)
    used = table | {-1 - value: to for value, to in values.items()}  # negative keys: apart from the colours
    count = len(names) or max([to for to in used.values() if to != IGNORE_ID], default=-1) + 1
    table |= {color: IGNORE_ID for page in pages for color in page.colors if color not in table}  # `values` go first
    return LabelRule(_classes(names, count, used), True, table, tuple(notes), values)


def _own_values(pages: list[PageCodes], values: dict[int, int], known: dict[int, int]) -> dict[int, int]:
    """The --map entries for values that occur; InputError where an entry for their colour says otherwise."""
    shown = [page.color_of_value() for page in pages]
    for page, colors in zip(pages, shown, strict=True):
        for value, to in values.items():
            color = colors.get(value)
            if known.get(color, to) != to:
                raise InputError(
                    f"--map sends the value {value} and its colour {hex_color(color)} in {page.page} to different "
                    "classes: leave out one of the two"
                )
    occurring = {value: to for value, to in values.items() if any(value in colors for colors in shown)}
    if values and not occurring and all(page.values is None for page in pages):
        raise InputError(
            f"--map names the value {next(iter(values))} but the masks are coloured and none of them has that grey: "
            "give their colours, such as #808080=1"
        )
    return occurring


def _classes(names: tuple[str, ...], count: int, table: dict[int, int]) -> Classes:
    beyond = sorted({to for to in table.values() if to >= count and to != IGNORE_ID})
    if beyond:
        raise InputError(
            f"--map sends pixels to class {beyond[0]}, but the ids end at {count - 1}: name all classes with --classes"
        )
    if count < 2:
        raise InputError(
            f"the masks hold {count} class(es), expected at least 2: name the absent ones too, with "
            "--classes background,..."
        )
    if count > MAX_CLASSES:
        raise InputError(f"the masks hold {count} classes, more than the {MAX_CLASSES} possible: merge some with --map")
    return Classes.named(*(names or [f"class_{i}" for i in range(count)]))


def _refuse_strays(pages: list, strays: list[int], show, expected: str, remedy: str) -> None:
    affected = [(page, counts) for page, counts in pages if any(code in counts for code in strays)]
    page, counts = affected[0]
    here = [code for code in strays if code in counts]
    found = ", ".join(f"{show(code)} ({counts[code]} px)" for code in here[:6]) + ", ..." * (len(here) > 6)
    raise InputError(
        f"{page} has mask values {found} that are no class (in {len(affected)} of {len(pages)} masks), "
        f"expected {expected}: {remedy}"
    )


def _total(counts) -> Counter:
    total: Counter = Counter()
    for page in counts:
        total.update(page)
    return total


def packed_color(color: tuple[int, int, int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]


def hex_color(code: int) -> str:
    return f"#{code:06x}"
