"""What `calibrate` chose for a data root: its calibration.json, as generation and training find it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from natural2nanoscale.data.folders import PairFolder, fingerprint
from natural2nanoscale.records import describe
from natural2nanoscale.schemas import CALIBRATION

FILE = "calibration.json"
AGAIN = "`python -m natural2nanoscale calibrate` makes it anew"


def read_calibration(root: Path, folders: Iterable[PairFolder], controlnet: str | None) -> dict | None:
    """calibration.json of a data root, whose "choice" has strength, start, ratio (0: real slices alone) and mode.

    None where there is none and, with a printed line, where it is of other slices than those of `folders`, "train" and
    "val" of the root, or of another ControlNet than the one whose weights have this hash (None: any).
    InputError where it cannot be read.
    """
    file = root / FILE
    if not os.path.lexists(file):
        return None
    found = describe(file, CALIBRATION, f"remove it; {AGAIN}")
    other = [f"{folder.path} has" for folder in folders if found["data"][folder.path.name] != fingerprint(folder)]
    if other or controlnet not in (None, found["controlnet"]):
        why = f"{other[0]} other slices now" if other else "it is of another ControlNet"
        print(f"{file} is ignored, {why}: {AGAIN}")
        return None
    return found
