"""Masks as they come (class ids, 0 and 255, colours) to class ids: one rule for the whole data set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from natural2nanoscale.data.classes import IGNORE_ID, MAX_CLASSES, Classes, packed, palette
from natural2nanoscale.data.prepare.codes import LabelRule, PageCodes, without_unlabelled
from natural2nanoscale.data.prepare.pixels import UNLABELLED
from natural2nanoscale.data.prepare.ranges import Mapping, without_ranges
from natural2nanoscale.data.prepare.remedies import MANY, for_values, objects
from natural2nanoscale.errors import InputError


def decide_labels(
    pages: list[PageCodes],
    names: tuple[str, ...] = (),
    colors: tuple[tuple[str, int], ...] = (),
    mapping: Mapping | None = None,
    labels_from: int = 0,
) -> LabelRule:
    """The rule that fits all masks, or an InputError that names file, values and pixel counts.

    names: the classes in the order of their ids. colors: (name, 0xRRGGBB) of the classes in that order.
    mapping: class id or IGNORE_ID for mask values (int), ranges and colours ("#rrggbb"); it goes before all else. In a
    coloured mask a value is a grey; in a palette picture it is the index. The pages' ranges are merged already.
    labels_from: value of the first class; what is below is ignored.
    """
    given = mapping or {}
    mapping = without_ranges(given)
    pages = [without_unlabelled(page) for page in pages]
    seen: dict[int, int] = {}  # colours of palette values: where files disagree, only the colours tell the classes
    shuffled = any(seen.setdefault(value, color) != color for page in pages for value, color in page.palette.items())
    by_color = bool(colors) or shuffled or any(page.values is None for page in pages)
    if by_color:
        for page in pages:
            if page.colors is None:
                raise InputError(
                    f"{page.page} has values beyond 255 where colours are expected: save all masks in one form"
                )
        if labels_from:
            raise InputError(f"--labels-from {labels_from} shifts values, but the masks are coloured: pass --colors")
        scale = _scale_of_colors(pages, colors)
        pages = [replace(page, colors={code * scale: n for code, n in page.colors.items()}) for page in pages]
        rule = _color_rule(pages, names, colors, mapping)
        rule = replace(rule, table={code // scale: to for code, to in rule.table.items()}) if scale > 1 else rule
        return replace(rule, table=rule.table | {UNLABELLED: IGNORE_ID}, mapping=given)
    if any(isinstance(key, str) for key in mapping):
        raise InputError("--map names colours but no mask is coloured: give the masks' values, such as 128=1")
    shift = _shift([page.values for page in pages], mapping, labels_from, names) if labels_from else {}
    rule = _value_rule(pages, names, mapping | shift, given)
    notes = (f"mask value {labels_from} is class 0, and so on; lower values are ignored",) if labels_from else ()
    table = rule.table | {UNLABELLED: IGNORE_ID}
    return replace(rule, table=table, mapping=given, notes=notes + rule.notes)


def _scale_of_colors(pages: list[PageCodes], colors: tuple[tuple[str, int], ...]) -> int:
    """255 for colours of channels 0 and 1 only, unless --colors names such; else 1."""

    def small(code: int) -> bool:
        return not code & ~0x010101

    used = {code for page in pages for code in page.colors}
    return 255 if any(used) and all(map(small, used)) and not any(c and small(c) for _name, c in colors) else 1


def _shift(
    pages: list[dict[int, int]], mapping: dict[int, int], labels_from: int, names: tuple[str, ...]
) -> dict[int, int]:
    """--labels-from as entries of --map; 255 stays what it is."""
    values = [value for value in _total(pages) if value not in mapping and value != 255]
    shifted = [value for value in values if value >= labels_from]
    if len(shifted) > MANY and not names:
        raise InputError(f"--labels-from {labels_from} makes {len(shifted)} classes: name them with --classes")
    beyond = [value for value in values if value - labels_from >= MAX_CLASSES]
    if beyond:
        raise InputError(
            f"--labels-from {labels_from} makes mask value {max(beyond)} class {max(beyond) - labels_from}, expected "
            f"at most {MAX_CLASSES - 1}: map it with --map"
        )
    return {value: value - labels_from if value >= labels_from else IGNORE_ID for value in values}


def _value_rule(pages: list[PageCodes], names: tuple[str, ...], mapping: dict[int, int], given: Mapping) -> LabelRule:
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
    if len(rest) > MANY and not names:
        raise InputError(
            f"the masks hold {len(rest)} different values from {rest[0]} to {rest[-1]}, such as in {pages[0].page}: "
            f"{objects(rest, given)}, name all classes with --classes, or save the masks "
            "again without smoothing or JPEG if they should hold fewer"
        )
    mapped = {to for to in table.values() if to != IGNORE_ID}
    used = set(rest) | set(range(max(mapped, default=-1) + 1))  # --map may name a class that no mask holds
    count = len(names) or next(n for n in range(len(used) + 1) if n not in used)  # ids without gaps
    strays = [value for value in rest if not 0 <= value < count]
    if strays:
        remedy = for_values(sorted(total), strays, names, given)
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
        standard = packed(np.array(palette(len(names) or MAX_CLASSES))).tolist()
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


def hex_color(code: int) -> str:
    return f"#{code:06x}"
