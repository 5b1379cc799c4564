"""The `check` verb: look at a data root before training on it."""

from __future__ import annotations

import argparse
from pathlib import Path

from natural2nanoscale.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", type=Path, nargs="?", default=Path("data"), metavar="DATA",
        help="data root with train/, val/ and test/, or one pair folder (default: data)",
    )  # fmt: skip
    parser.add_argument("--contact", type=Path, metavar="FILE", help="contact sheet (default: DATA/contact.png)")


def run(args: argparse.Namespace) -> None:
    from natural2nanoscale.data.check import open_root, report
    from natural2nanoscale.data.sheets import contact_sheet

    report(args.data)
    path = args.contact or args.data / "contact.png"
    try:
        contact_sheet(open_root(args.data), path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error}): name another file with --contact") from error
    print(f"contact sheet: {path}")
