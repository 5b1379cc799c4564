"""Which slices are for training, validation and test: contiguous blocks, at random, or whole groups."""

from __future__ import annotations

import hashlib
import re

from natural2nanoscale.data.folders import PARTS
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.data.prepare.sources import Page
from natural2nanoscale.errors import InputError


def assign_parts(settings: Preparation, slices: list[Page]) -> tuple[list[str | None], dict]:
    """Part of every slice (None: discarded as gap), and the description for dataset.json."""
    val, test, seed = settings.val, settings.test, settings.seed
    description = {"rule": settings.rule, "val": val, "test": test}
    if settings.rule == "block":
        gap = default_gap(len(slices)) if settings.gap is None else settings.gap
        parts = split_blocks(len(slices), val, test, gap)
        description |= {"gap": gap}
        if gap == 0:
            print("note: no gap between the blocks, so neighbours are in training and in test: pass --gap 1 if you can")
    elif settings.rule == "random":
        parts = split_random([page.stem for page in slices], val, test, seed)
        description |= {"seed": seed}
    else:
        groups = groups_of([page.path.name for page in slices], settings.group)
        parts = split_groups(groups, val, test, seed, settings.val_groups, settings.test_groups)
        members = {part: sorted({g for g, of in zip(groups, parts, strict=True) if of == part}) for part in PARTS}
        description |= {"seed": seed, "group": settings.group, "groups": members}
    if settings.size:
        description |= {"size": list(settings.size), "tiles": settings.tiles}
    counts = ", ".join(f"{parts.count(part)} {part}" for part in PARTS)
    print(f"split by {settings.rule}: {counts} slices" + (f", {parts.count(None)} in gaps" if None in parts else ""))
    if settings.rule == "random":
        print("note: at random, neighbours in a stack come to training and to test, which flatters the scores")
    for part, names in description.get("groups", {}).items():
        print(f"  {part}: {', '.join(names)}")
    return parts, description


def part_counts(count: int, val: float, test: float) -> tuple[int, int, int]:
    """How many of `count` slices or groups go to train, val and test; a part asked for is never empty."""
    if not (0 <= val <= 1 and 0 <= test <= 1 and val + test <= 1 + 1e-9):
        raise InputError(f"--val {val} and --test {test} must lie in 0..1 and add up to 1 at most")
    training = val + test < 1 - 1e-9
    n_test = max(1, round(count * test)) if test > 0 else 0
    n_val = max(1, round(count * val)) if val > 0 else 0
    if not training and val > 0:
        n_val = count - n_test
    n_train = count - n_val - n_test
    if n_train < training or n_val < (val > 0):
        raise InputError(
            f"{count} slices or groups cannot be split into train, val and test by --val {val:.3g} "
            f"--test {test:.3g}, expected at least one each: add slices or change the fractions"
        )
    return n_train, n_val, n_test


def default_gap(count: int) -> int:
    """Slices between two blocks: 4, one per 20 slices below 80, none below ten slices."""
    return min(4, max(1, count // 20)) if count >= 10 else 0


def split_blocks(count: int, val: float, test: float, gap: int) -> list[str | None]:
    """Part of every slice in order: train, gap, val, gap, test. Slices of a gap (None) are in no part.

    Neighbouring slices of a stack are nearly equal, so a test slice next to a training slice tests nothing.
    """
    gaps = sum([val > 0, test > 0, val + test < 1 - 1e-9]) - 1
    if count - gaps * gap < 1 + gaps <= count:
        raise InputError(f"{count} slices leave too few after {gaps} gaps of {gap}: pass a smaller --gap")
    labels: list[str | None] = []
    kept = count if count < 1 + gaps else count - gaps * gap
    for part, size in zip(PARTS, part_counts(kept, val, test), strict=True):
        if size:
            labels += ([None] * gap if labels else []) + [part] * size
    return labels


def keyed_order(items: list[str], seed: int) -> list[str]:
    """A random order in which every item's place is drawn from (seed, item) alone."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}\n{item}".encode()).digest())


def split_random(stems: list[str], val: float, test: float, seed: int) -> list[str | None]:
    """Part of every slice, at random as in the paper: neighbours leak from training to test."""
    n_train, n_val, _n_test = part_counts(len(stems), val, test)
    order = keyed_order(stems, seed)
    part = {stem: "train" if i < n_train else "val" if i < n_train + n_val else "test" for i, stem in enumerate(order)}
    return [part[stem] for stem in stems]


def groups_of(file_names: list[str], pattern: str) -> list[str]:
    """The first group of the regular expression in every file name."""
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--group {pattern!r} is no regular expression ({error})") from error
    if regex.groups < 1:
        raise InputError(f"--group {pattern!r} has no group in parentheses, expected one such as 'sub-(rat\\d+)'")
    found = []
    for name in file_names:
        match = regex.search(name)
        if not match or not match[1]:
            raise InputError(f"--group {pattern!r} does not match the file name {name!r}: change the expression")
        found.append(match[1])
    return found


def split_groups(
    groups: list[str],
    val: float,
    test: float,
    seed: int,
    val_groups: tuple[str, ...],
    test_groups: tuple[str, ...],
) -> list[str | None]:
    """Part of every slice such that no group is in two parts; groups not named are drawn by the seed."""
    distinct = sorted(set(groups))
    for flag, named in (("--val-groups", val_groups), ("--test-groups", test_groups)):
        unknown = [group for group in named if group not in distinct]
        if unknown:
            raise InputError(f"{flag} names {unknown[0]!r}, expected groups among {', '.join(distinct)}")
    both = set(val_groups) & set(test_groups)
    if both:
        raise InputError(f"{sorted(both)[0]!r} is named by --val-groups and --test-groups: a group is in one part only")
    if len(distinct) < 1 + (val > 0) + (test > 0):
        raise InputError(
            f"--group finds {len(distinct)} group(s) ({', '.join(distinct)}), expected one per part "
            "at least: use --split block or another expression"
        )
    _n_train, n_val, n_test = part_counts(len(distinct), val, test)
    order = keyed_order(distinct, seed)
    test_set = set(test_groups or [group for group in order if group not in val_groups][:n_test])
    val_set = set(val_groups or [group for group in order if group not in test_set][:n_val])
    if not set(distinct) - test_set - val_set and val + test < 1 - 1e-9:
        raise InputError("no group is left for training: name fewer with --val-groups and --test-groups")
    return ["test" if g in test_set else "val" if g in val_set else "train" for g in groups]
