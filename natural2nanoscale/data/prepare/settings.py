"""What `prepare` converts, and how."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from natural2nanoscale.cli import at_least, setting, size
from natural2nanoscale.data.classes import IGNORE_ID, MAX_CLASSES
from natural2nanoscale.errors import InputError

Mapping = dict  # value (int), range of values (low, high or None for no end) or colour ("#rrggbb") -> class id
VAL, TEST = 25 / 323, 65 / 323  # the paper's 233, 25 and 65 slices


def two_numbers(text: str) -> tuple[float, float]:
    """Argument type of `0.1,99.9` -> (0.1, 99.9), in ascending order."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = float("nan")
    if not (low < high and math.isfinite(high - low)):
        raise InputError(f"{text!r} must be two ascending numbers joined by a comma, LOW,HIGH")
    return low, high


def group_names(text: str) -> tuple[str, ...]:
    """Argument type of `rat7,rat8`."""
    return tuple(filter(None, text.split(",")))


def parse_colors(text: str) -> tuple[tuple[str, int], ...]:
    """`name=#rrggbb,...` -> ((name, 0xRRGGBB), ...) in the order of the class ids."""
    entries = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([^=]+?)\s*=\s*#([0-9a-fA-F]{6})\s*", part)
        if not match:
            raise InputError(f"--colors has the entry {part!r}, expected name=#rrggbb,name=#rrggbb,...")
        entries.append((match[1], int(match[2], 16)))
    if len({color for _name, color in entries}) < len(entries):
        raise InputError(f"--colors {text} gives one colour to two classes: use --map to merge classes")
    return tuple(entries)


def parse_map(text: str) -> Mapping:
    """`128=1,7=ignore,1-=2,#000000=ignore` -> {128: 1, 7: 255, (1, None): 2, "#000000": 255}."""
    mapping: Mapping = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(-?\d+)(-(-?\d+)?)?|(#[0-9a-fA-F]{6}))\s*=\s*(\d+|ignore)\s*", part)
        if not match or (match[5] != "ignore" and int(match[5]) >= MAX_CLASSES):
            raise InputError(
                f"--map has the entry {part!r}, expected value=id (0..{MAX_CLASSES - 1}) or value=ignore, "
                "such as 128=1,7=ignore, 1-=1 for all values from 1 on, or #000000=ignore"
            )
        key = match[4].lower() if match[4] else int(match[1])
        if match[2]:
            key = key, int(match[3]) if match[3] else None
            if key[1] is not None and key[1] < key[0]:
                raise InputError(f"--map has the entry {part!r}, expected a range from low to high, such as 3-7=1")
        mapping[key] = IGNORE_ID if match[5] == "ignore" else int(match[5])
    return mapping


def parse_axes(text: str) -> str:
    """`zyx` -> "ZYX"."""
    axes = text.upper()
    if not re.fullmatch(r"[A-Z]{2,7}", axes) or len(set(axes)) < len(axes) or not {"Y", "X"} <= set(axes):
        raise InputError(f"--axes is {text!r}, expected one letter per axis, such as ZYX, YXZ or ZCYX (C for channels)")
    return axes


def parse_names(text: str) -> tuple[str, ...]:
    """`background,cytoplasm,nucleus` -> names in the order of the class ids."""
    names = tuple(part.strip() for part in text.split(","))
    if "" in names or len(set(names)) < len(names) or not 2 <= len(names) <= MAX_CLASSES:
        raise InputError(f"--classes is {text!r}, expected 2 to {MAX_CLASSES} different names joined by commas")
    return names


@dataclass(frozen=True)
class Preparation:
    """What to convert, and how. Sizes are (width, height); fractions are of the slices, or of the groups.

    Raises InputError, which names the option, where settings contradict one another.
    """

    images: Path
    masks: Path
    out: Path
    unlabelled: Path | None = None  # slices without masks
    transductive: bool = False  # those of validation and test may be among them
    classes: tuple[str, ...] = setting(
        (), "class names by id, such as background,cytoplasm,nucleus", parse_names, metavar="NAMES"
    )
    colors: tuple[tuple[str, int], ...] = setting(
        (), 'colour-coded masks: "background=#000000,nucleus=#ff8000,...", in the order of the ids', parse_colors,
        metavar="LIST",
    )  # fmt: skip
    mapping: Mapping | None = setting(
        None, 'mask values or colours to ids, such as "128=1,7=ignore,#000000=ignore"; 1-=1 takes all from 1 on',
        parse_map, "--map", metavar="LIST",
    )  # fmt: skip
    labels_from: int = setting(0, "mask value of the first class; lower ones are ignored", int, metavar="N")
    one_hot: bool = setting(False, "masks are one page, channel or folder per class")
    blank: str | None = setting(
        None, "masks that hold nothing but 0 beside others: ignore (left out, the default) or background",
        choices=("ignore", "background"),
    )  # fmt: skip
    alpha: str | None = setting(
        None, "transparency of masks: drop it, ignore transparent pixels, or it holds the class",
        choices=("drop", "ignore", "class"),
    )  # fmt: skip
    channel: int | None = setting(None, "of several channels of the slices the one to take, from 0", at_least(0))
    axes: str | None = setting(
        None, "what the axes of arrays are where files do not say it, such as ZYX, YXZ or ZCYX", parse_axes,
        metavar="AXES",
    )  # fmt: skip
    crop_bottom: int = setting(0, "cut off the lowest rows, a microscope's information bar", at_least(0))
    flip_y: bool = setting(False, "rows of MRC files begin below; those of IMOD say so themselves and need no flag")
    split: str | None = setting(
        None, "block: contiguous with gaps (default); random: as in the paper, neighbours leak; or group",
        choices=("block", "random", "group"),
    )  # fmt: skip
    group: str | None = setting(
        None, "keep together what its first group finds in the file names, such as 'sub-(rat\\d+)'", metavar="REGEX"
    )
    val: float = setting(VAL, "share of slices or groups (default: 25/323)", float, metavar="F")
    test: float = setting(TEST, "share of slices or groups (default: 65/323)", float, metavar="F")
    val_groups: tuple[str, ...] = setting(
        (), "groups for validation, such as rat6 (default: by --seed)", group_names, metavar="NAMES"
    )
    test_groups: tuple[str, ...] = setting(
        (), "groups for testing, such as rat7,rat8 (default: by --seed)", group_names, metavar="NAMES"
    )
    gap: int | None = setting(
        None, "slices thrown away between blocks (default: 4, fewer below 80 slices)", at_least(0), metavar="N"
    )
    seed: int = setting(0, "of random and group splits", int, metavar="N")
    size: tuple[int, int] | None = setting(
        None, "cut every slice into as many tiles as fit, centred", size, metavar="WxH"
    )
    tiles: int | None = setting(None, "at most N tiles of each slice, the most central ones", at_least(1), metavar="N")
    skip_small: bool = setting(False, "leave out slices smaller than --size")
    only_pairs: bool = setting(False, "leave out images without a mask and masks without an image")
    count_from: int | None = setting(
        None, "number that files beside a stack give to its first page, where their names leave it open", int,
        choices=(0, 1),
    )  # fmt: skip
    default_percentiles: ClassVar[tuple[float, float]] = (0.1, 99.9)
    percentiles: tuple[float, float] | None = setting(
        None, "of the training part's grey values, for 0 and 255 (default: 0.1,99.9; 8-bit stays as it is)",
        two_numbers, metavar="LOW,HIGH",
    )  # fmt: skip
    window: tuple[float, float] | None = setting(
        None, "grey values that become 0 and 255, instead of percentiles", two_numbers, metavar="LOW,HIGH"
    )
    pixel_size_nm: float | None = setting(
        None, "nanometres per pixel, noted in dataset.json", at_least(0.0, float), "--pixel-size", metavar="NM"
    )
    max_pixels: int = setting(
        1_000_000_000, "refuse larger pictures, against decompression bombs", at_least(1), metavar="N"
    )

    def __post_init__(self) -> None:
        if (self.rule == "group") != bool(self.group):
            raise InputError(f"--split {self.split} and --group {self.group}: the two belong together")
        if self.rule != "group" and (self.val_groups or self.test_groups):
            raise InputError(
                "--val-groups and --test-groups need --group REGEX, which finds the groups in the file names"
            )
        if self.gap is not None and self.rule != "block":
            raise InputError(f"--gap {self.gap} goes with --split block only, found --split {self.rule}")
        if (self.tiles or self.skip_small) and not self.size:
            raise InputError("--tiles and --skip-small need --size WxH")
        if self.transductive and not self.unlabelled:
            raise InputError("--transductive goes with --unlabelled PATH, slices without masks")
        if self.classes and self.colors:
            raise InputError("--colors names the classes already: leave out --classes")
        if self.percentiles and self.window:
            raise InputError("--percentiles and --window both set the grey values that become 0 and 255: pass one")
        if self.percentiles and not (0 <= self.percentiles[0] and self.percentiles[1] <= 100):
            raise InputError(f"--percentiles {self.percentiles[0]:g},{self.percentiles[1]:g} must lie in 0..100")

    @property
    def rule(self) -> str:
        """How slices are split: "block", "random" or "group"."""
        return self.split or ("group" if self.group else "block")
