"""The `prepare` verb: any EM pictures to train/, val/ and test/ pair folders."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from natural2nanoscale.cli import at_least, size
from natural2nanoscale.data.prepare.settings import Preparation
from natural2nanoscale.errors import InputError


# fmt: off
def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--images", type=Path, required=True, metavar="PATH",
        help="folder of PNG or TIFF slices, or a TIFF stack")
    add("--masks", type=Path, required=True, metavar="PATH",
        help="their masks: equal file names, or a stack of as many pages; class ids, 0 and 255, or colours")
    add("--out", type=Path, default=Path("data"), metavar="DIR", help="data root to make (default: data)")
    add("--classes", metavar="NAMES", help="class names by id, such as background,cytoplasm,nucleus")
    add("--colors", metavar="LIST",
        help='colour-coded masks: "background=#000000,nucleus=#ff8000,...", in the order of the ids')
    add("--map", metavar="LIST",
        help='mask values or colours to ids, such as "128=1,7=ignore,#000000=ignore"')
    add("--split", choices=("block", "random", "group"),
        help="block: contiguous with gaps (default); random: as in the paper, neighbours leak; or group")
    add("--group", metavar="REGEX",
        help="keep together what its first group finds in the file names, such as 'sub-(rat\\d+)'")
    add("--val", type=float, default=Preparation.val, metavar="F",
        help="share of slices or groups (default: 25/323)")
    add("--test", type=float, default=Preparation.test, metavar="F",
        help="share of slices or groups (default: 65/323)")
    add("--val-groups", metavar="NAMES", help="groups for validation, such as rat6 (default: by --seed)")
    add("--test-groups", metavar="NAMES", help="groups for testing, such as rat7,rat8 (default: by --seed)")
    add("--gap", type=at_least(0), metavar="N",
        help="slices thrown away between blocks (default: 4, fewer below 80 slices)")
    add("--seed", type=int, default=Preparation.seed, metavar="N",
        help="of random and group splits (default: %(default)s)")
    add("--size", type=size, metavar="WxH", help="cut every slice into as many tiles as fit, centred")
    add("--tiles", type=at_least(1), metavar="N", help="at most N tiles of each slice, the most central ones")
    add("--skip-small", action="store_true", help="leave out slices smaller than --size")
    add("--only-pairs", action="store_true",
        help="leave out images without a mask and masks without an image")
    add("--percentiles", metavar="LOW,HIGH",
        help="of the training part's grey values, for 0 and 255 (default: 0.1,99.9; 8-bit stays as it is)")
    add("--window", metavar="LOW,HIGH", help="grey values that become 0 and 255, instead of percentiles")
    add("--pixel-size", type=at_least(0.0, float), metavar="NM",
        help="nanometres per pixel, noted in dataset.json")
    add("--max-pixels", type=at_least(1), default=Preparation.max_pixels, metavar="N",
        help="refuse larger pictures, against decompression bombs (default: %(default)s)")
# fmt: on


def run(args: argparse.Namespace) -> None:
    from natural2nanoscale.data.inspection import report
    from natural2nanoscale.data.prepare.convert import prepare

    settings = settings_of(args)
    prepare(settings)
    report(settings.out)
    print(f"contact sheet: {settings.out / 'contact.png'}")


def settings_of(args: argparse.Namespace) -> Preparation:
    """The options, checked together; InputError names the option."""
    from natural2nanoscale.data.prepare.labels import parse_colors, parse_map, parse_names

    split = args.split or ("group" if args.group else "block")
    if (split == "group") != bool(args.group):
        raise InputError(f"--split {split} and --group {args.group}: the two belong together")
    if split != "group" and (args.val_groups or args.test_groups):
        raise InputError("--val-groups and --test-groups need --group REGEX, which finds the groups in the file names")
    if args.gap is not None and split != "block":
        raise InputError(f"--gap {args.gap} goes with --split block only, found --split {split}")
    if (args.tiles or args.skip_small) and not args.size:
        raise InputError("--tiles and --skip-small need --size WxH")
    if args.classes and args.colors:
        raise InputError("--colors names the classes already: leave out --classes")
    if args.percentiles and args.window:
        raise InputError("--percentiles and --window both set the grey values that become 0 and 255: pass one")
    percentiles = two_numbers("--percentiles", args.percentiles)
    if percentiles and not (0 <= percentiles[0] and percentiles[1] <= 100):
        raise InputError(f"--percentiles {args.percentiles} must lie in 0..100")
    return Preparation(
        images=args.images, masks=args.masks, out=args.out, split=split, group=args.group,
        val=args.val, test=args.test, gap=args.gap, seed=args.seed,
        val_groups=tuple(filter(None, (args.val_groups or "").split(","))),
        test_groups=tuple(filter(None, (args.test_groups or "").split(","))),
        size=args.size, tiles=args.tiles, skip_small=args.skip_small, only_pairs=args.only_pairs,
        classes=parse_names(args.classes) if args.classes else (),
        colors=parse_colors(args.colors) if args.colors else (),
        mapping=parse_map(args.map) if args.map else None,
        percentiles=percentiles, window=two_numbers("--window", args.window),
        pixel_size_nm=args.pixel_size, max_pixels=args.max_pixels,
    )  # fmt: skip


def two_numbers(flag: str, text: str | None) -> tuple[float, float] | None:
    """`0.1,99.9` -> (0.1, 99.9), in ascending order."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = float("nan")
    if not (low < high and math.isfinite(high - low)):
        raise InputError(f"{flag} {text!r} must be two ascending numbers joined by a comma")
    return low, high
