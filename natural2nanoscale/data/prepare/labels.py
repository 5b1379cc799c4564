"""Masks as they come (class ids, 0 and 255, colours) to class ids: one rule for the whole data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from natural2nanoscale.data.classes import IGNORE_ID, MAX_CLASSES, Classes, packed, palette
from natural2nanoscale.data.prepare.codes import LabelRule, PageCodes
from natural2nanoscale.data.prepare.remedies import MANY, for_values, objects, soft_edges
from natural2nanoscale.data.prepare.settings import Mapping
from natural2nanoscale.data.prepare.sources import UNLABELLED, Page
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
    coloured mask a value is a grey; in a palette picture it is the index. The pages' codes know its ranges already.
    labels_from: value of the first class; what is below is ignored.
    """
    mapping = mapping or {}
    pages = [replace(page, counts={c: n for c, n in page.counts.items() if c != UNLABELLED}) for page in pages]
    seen: dict[int, int] = {}  # colours of palette values: where files disagree, only the colours tell the classes
    shuffled = any(seen.setdefault(value, color) != color for page in pages for value, color in page.palette.items())
    if colors or shuffled or any(page.colored for page in pages):
        if labels_from:
            raise InputError(f"--labels-from {labels_from} shifts values, but the masks are coloured: pass --colors")
        rule = _color_rule(pages, names, colors, mapping)
    else:
        if any(isinstance(key, str) for key in mapping):
            raise InputError("--map names colours but no mask is coloured: give the masks' values, such as 128=1")
        rule = _value_rule(pages, names, mapping, labels_from)
    return replace(rule, table=rule.table | {UNLABELLED: IGNORE_ID})


def _value_rule(pages: list[PageCodes], names: tuple[str, ...], given: Mapping, labels_from: int) -> LabelRule:
    total, notes = _total(page.counts for page in pages), []
    table = {value: given[value] for value in total if value in given}
    if labels_from:
        table |= _shift([value for value in total if value not in table and value != 255], labels_from, names)
        notes.append(f"mask value {labels_from} is class 0, and so on; lower values are ignored")
    rest = sorted(set(total) - set(table))
    if 255 in rest and set(rest) <= {0, 255} and not any(0 < to < IGNORE_ID for to in table.values()):
        if len(names) > 2:
            raise InputError(
                f"the masks hold only 0 and 255, which is two classes, but {len(names)} are named: name two with "
                "--classes, or pass --map 255=ignore if 255 marks unlabelled pixels"
            )
        table[255] = 1
        names = names or ("background", "foreground")
        notes.append("mask value 255 is class 1: the masks hold only 0 and 255")
    elif 255 in rest:
        _refuse_mixed(pages)
        table[255] = IGNORE_ID
        notes.append(f"mask value 255 is ignored ({total[255]} px)")
    rest = [value for value in rest if value != 255]
    if len(rest) > MANY and not names:
        raise InputError(
            f"the masks hold {len(rest)} different values from {rest[0]} to {rest[-1]}, such as in {pages[0].page}: "
            f"{soft_edges(total, given) or objects(rest, given)}, name all classes with --classes, or save the masks "
            "again without smoothing or JPEG if they should hold fewer"
        )
    highest = max((to for to in table.values() if to != IGNORE_ID), default=-1)
    count = len(names) or _free({*rest, *range(highest + 1)})  # --map may name a class that no mask holds
    strays = [value for value in rest if not 0 <= value < count]
    if strays:
        remedy = soft_edges(total, given) or for_values(sorted(set(total) - set(given)), strays, names, given)
        expected = f"0..{count - 1}" if count > 1 else "0" if count else "ids that count from 0"
        _refuse_strays([(p.page, p.counts) for p in pages], strays, str, expected, remedy)
    table |= {value: value for value in rest}
    return LabelRule(_classes(names, count, table.values()), tuple(notes), given, table, {})


def _refuse_mixed(pages: list[PageCodes]) -> None:
    """Raise InputError where some masks hold 0 and 255 and all others 0 and 1: two ways to write the same?"""
    white = [page for page in pages if 255 in page.counts]
    others = [page for page in pages if 255 not in page.counts]
    if all(set(page.counts) <= {0, 255} for page in white) and {v for page in others for v in page.counts} == {0, 1}:
        raise InputError(
            f"{white[0].page} holds 0 and 255 but {others[0].page} 0 and 1: pass `--map 255=1` if both mean the same, "
            "or `--map 255=ignore` if 255 marks unlabelled pixels"
        )


def _shift(values: list[int], labels_from: int, names: tuple[str, ...]) -> dict[int, int]:
    """--labels-from as entries of --map."""
    shifted = {value: value - labels_from if value >= labels_from else IGNORE_ID for value in values}
    count, highest = sum(to != IGNORE_ID for to in shifted.values()), max(values, default=0)
    if count > MANY and not names:
        raise InputError(f"--labels-from {labels_from} makes {count} classes: name them with --classes")
    if highest - labels_from >= MAX_CLASSES:
        raise InputError(
            f"--labels-from {labels_from} makes mask value {highest} class {highest - labels_from}, expected "
            f"at most {MAX_CLASSES - 1}: map it with --map"
        )
    return shifted


def _color_rule(
    pages: list[PageCodes], names: tuple[str, ...], colors: tuple[tuple[str, int], ...], mapping: Mapping
) -> LabelRule:
    known = {int(key[1:], 16): to for key, to in mapping.items() if isinstance(key, str)}
    scale = _scale_of_colors(pages, colors)
    table, left = {}, [Counter() for _ in pages]
    for page, counts in zip(pages, left, strict=True):
        for code, pixels in page.counts.items():
            to, color = mapping.get(code), page.color_of(code)
            if to is None and color is None:
                raise InputError(
                    f"{page.page} has values beyond 255 where colours are expected: save all masks in one form"
                )
            if to is None:
                counts[color * scale] += pixels
                continue
            table[code] = to
            if color is not None and known.get(color * scale, to) != to:
                raise InputError(
                    f"--map sends the value {code} and its colour {hex_color(color * scale)} in {page.page} to "
                    "different classes: leave out one of the two"
                )
    values = [key for key in mapping if not isinstance(key, str)]
    if values and not table and all(page.colored for page in pages):
        raise InputError(
            f"--map names the value {values[0]} but the masks are coloured and none of them has that grey: "
            "give their colours, such as #808080=1"
        )
    total, notes = _total(left), []
    ids = {color: i for i, (_name, color) in enumerate(colors)}
    names = tuple(name for name, _color in colors) or names
    if not colors:
        standard = packed(np.array(palette(len(names) or MAX_CLASSES))).tolist()
        # without names the palette's first K colours: blends must not stand for classes that nobody has
        count = len(names) or _free({standard.index(c) for c in total if c in standard and c not in known})
        ids = {color: i for i, color in enumerate(standard[:count])}
        notes.append("mask colours are the standard palette: " + ", ".join(f"{hex_color(c)} = {ids[c]}" for c in ids))
    class_of = {color: known.get(color, ids.get(color, -1)) for color in total}
    strays = sorted((color for color, to in class_of.items() if to < 0), key=lambda color: -total[color])
    if strays:
        if len(strays) > MAX_CLASSES:
            remedy = "save the masks without smoothing, resizing or JPEG, since so many colours cannot be classes"
        else:
            listed = ",".join(f"class_{i}={hex_color(color)}" for i, (color, _n) in enumerate(total.most_common(8)))
            ignored = f'`--map "{hex_color(strays[0])}=ignore"`'
            remedy = f'list all classes as `--colors "{listed}"`, or ignore some as {ignored}'
        expected = ", ".join(hex_color(color) for color in list(ids)[:8]) or "#ff0000 (0), #00ff00 (1), #0000ff (2)"
        _refuse_strays([(p.page, n) for p, n in zip(pages, left, strict=True)], strays, hex_color, expected, remedy)
    used = {*table.values(), *class_of.values()}
    count = len(names) or max(used - {IGNORE_ID}, default=-1) + 1
    return LabelRule(_classes(names, count, used), tuple(notes), mapping, table, class_of, scale)


def _scale_of_colors(pages: list[PageCodes], colors: tuple[tuple[str, int], ...]) -> int:
    """255 for colours of channels 0 and 1 only, unless --colors names such; else 1."""
    used = {page.color_of(code) or 0 for page in pages for code in page.counts}
    named = {color for _name, color in colors} - {0}
    return 255 if any(used) and not any(c & ~0x010101 for c in used) and all(c & ~0x010101 for c in named) else 1


def _classes(names: tuple[str, ...], count: int, used: Iterable[int]) -> Classes:
    beyond = sorted({to for to in used if to >= count and to != IGNORE_ID})
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


def _refuse_strays(
    pages: list[tuple[Page, Counter]], strays: list[int], show: Callable[[int], str], expected: str, remedy: str
) -> None:
    affected = [(page, counts) for page, counts in pages if any(code in counts for code in strays)]
    page, counts = affected[0]
    here = [code for code in strays if code in counts]
    found = ", ".join(f"{show(code)} ({counts[code]} px)" for code in here[:6]) + ", ..." * (len(here) > 6)
    raise InputError(
        f"{page} has mask values {found} that are no class (in {len(affected)} of {len(pages)} masks), "
        f"expected {expected}: {remedy}"
    )


def _total(counts: Iterable[Counter]) -> Counter:
    return sum(map(Counter, counts), Counter())


def _free(used: set[int]) -> int:
    """How many ids from 0 on are used without a gap."""
    return next(n for n in range(len(used) + 1) if n not in used)


def hex_color(code: int) -> str:
    return f"#{code:06x}"
