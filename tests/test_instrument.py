"""A study sees what is there: real slices in place of synthetic ones help, copies of the same slices do not."""

from dataclasses import replace

import pytest
import torch

from natural2nanoscale.data.folders import open_pairs
from natural2nanoscale.phantom.volume import PhantomSettings, write_phantom
from natural2nanoscale.segmentation.slices import Slices, load_slices
from natural2nanoscale.study.comparisons import find_control
from natural2nanoscale.study.conditions import ALL, mixed, real
from natural2nanoscale.study.presets import EQUAL, PRESETS, Place
from natural2nanoscale.study.trial import Cell, Trial
from natural2nanoscale.study.unets import train_cell
from natural2nanoscale.study.verdict import study_verdict

POOL, REDRAWS = 16, 4
BUDGET = replace(EQUAL, width=6, depth=3, max_steps=300, validate_every=100, crop=(64, 64))
STUDY = replace(PRESETS["worth"], budgets={"equal": BUDGET}, redraws=REDRAWS, scarce_ratio=7.0, pool=POOL, block=2)
ROTATION, MIX = (replace(one, experiment="worth") for one in (real("rotation"), mixed(7.0, "rotation")))


def some_of(slices: Slices, indices: list[int], real: bool) -> Slices:
    images, masks = ([of[i] for i in indices] for of in (slices.images, slices.masks))
    return replace(slices, images=images, masks=masks, real=len(indices) if real else 0, sources=())


@pytest.mark.slow  # sixteen U-Nets: the instrument is what they say together
def test_extra_real_slices_help_and_copies_do_not(tmp_path):
    device, rows = torch.device("cpu"), {"extra": [], "copies": []}
    write_phantom(tmp_path / "data", PhantomSettings((112, 64), POOL, 2, 8, 2))
    data = {part: load_slices(open_pairs(tmp_path / "data" / part)) for part in ("train", "val", "test")}
    for redraw in range(REDRAWS):
        pool, two = data["train"], [redraw, redraw + REDRAWS]  # neighbouring redraws, no slice in common
        others = [i for i in range(POOL) if i not in two]
        extra, copies = some_of(pool, others, real=False), some_of(pool, two * 7, real=False)
        parts = data | {"train": some_of(pool, two, real=True)}

        def row_of(condition, slices, count=2, redraw=redraw):
            trial = Trial(STUDY, Place(tmp_path), redraw, "given", count, [condition])
            row, _ = train_cell(Cell(trial, condition, 0), slices, device)
            return row | {"pool": POOL, "test": "one"}

        shared = [
            row_of(ROTATION, parts),
            row_of(replace(ROTATION, name=ALL), parts | {"train": pool}, POOL),
        ]
        rows["extra"] += [*shared, row_of(MIX, parts | {"synthetic": extra})]
        rows["copies"] += [*shared, row_of(MIX, parts | {"synthetic": copies})]
    told = {kind: study_verdict(found, STUDY) for kind, found in rows.items()}
    assert told["extra"].startswith("Synthetic slices helped: +")
    assert not told["copies"].startswith("Synthetic slices helped")
    assert find_control(rows["extra"], 2).room.over_redraws[0] > 0
