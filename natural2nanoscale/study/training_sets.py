"""Which slices a study learns from: its volumes, their splits, and what is drawn from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from natural2nanoscale.data.folders import PARTS, DatasetInfo, PairFolder, open_pairs, write_pairs
from natural2nanoscale.data.roots import digests_of, learned_from_folder, refuse_unfit
from natural2nanoscale.phantom.volume import write_phantom
from natural2nanoscale.seeds import permutation_for, seed_for
from natural2nanoscale.segmentation.schedule import check
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import load_slices
from natural2nanoscale.study.presets import Place, Preset
from natural2nanoscale.study.trial import Trial

Pairs = tuple[DatasetInfo, Iterable[tuple]]  # as `write_pairs` takes them


def check_study(folders: dict[str, PairFolder], budgets: Iterable[Settings]) -> None:
    """Raise InputError for pair folders train, val and test that no study can end on; nothing is written yet."""
    refuse_unfit([learned_from_folder(folders["train"])], [folders["val"], folders["test"]])
    training, validation = load_slices(folders["train"]), load_slices(folders["val"])
    for settings in budgets:
        check(training, validation, replace(settings, balance=None))


def open_trial(trial: Trial) -> dict[str, PairFolder]:
    """Draw the slices of a trial, or find them drawn: "pool", "train", "val" and "test"."""
    preset, redraw = trial.preset, trial.redraw
    root = redraw_root(trial.place, preset, redraw)
    if trial.split == "random":
        root = split_at_random(root, trial.folder.parent / "random", seed_for(preset.seed, "split", redraw))
    folders = {"pool": open_pairs(root / "train"), "test": open_pairs(root / "test")}
    folders["train"] = draw_train(trial.folder / "train", folders["pool"], trial.count, preset.seed, redraw)
    folders["val"] = draw_validation(open_pairs(root / "val"), trial.count, preset.seed, redraw)
    return folders


def redraw_root(place: Place, preset: Preset, redraw: int) -> Path:
    """The data root of one redraw: that of the study, or a phantom of its own."""
    if place.data is not None:
        return place.data
    root = place.out / f"redraw-{redraw}" / "phantom"
    if not root.exists():
        write_phantom(root, replace(preset.phantom, seed=seed_for(preset.seed, "redraw", redraw)))
    return root


def draw_train(out: Path, pool: PairFolder, count: int, seed: int, redraw: int) -> PairFolder:
    """`count` slices of the pool as a pair folder of its own; redraws share none while there are enough.

    The pool is shuffled and dealt out in sets of `count`; when it is used up, it is shuffled and dealt out anew. Where
    all are taken, it is the pool itself.
    """
    if count == len(pool.stems):
        return pool

    def drawn() -> Pairs:
        rounds, turn = divmod(redraw, len(pool.stems) // count)
        order = permutation_for(len(pool.stems), seed, "slices", rounds)
        chosen = [pool.stems[i] for i in sorted(order[turn * count : (turn + 1) * count])]
        info = replace(pool.info, digests=digests_of(pool))
        return info, ((stem, pool.image(stem), pool.mask(stem)) for stem in chosen)

    return made_once(out, drawn)


def made_once(out: Path, make: Callable[[], Pairs]) -> PairFolder:
    """The pair folder `out`, which is written where it is not complete."""
    if not (out / "dataset.json").is_file():
        shutil.rmtree(out, ignore_errors=True)  # half written when a study was killed
        write_pairs(out, *make())
    return open_pairs(out)


def some(folder: PairFolder, stems: Iterable[str]) -> PairFolder:
    """The slices of a folder that are named, without copies on the disk."""
    wanted = set(stems)
    kept = [i for i, stem in enumerate(folder.stems) if stem in wanted]
    return replace(folder, stems=tuple(folder.stems[i] for i in kept), shapes=tuple(folder.shapes[i] for i in kept))


def undrawn(folders: dict[str, PairFolder]) -> PairFolder:
    """The slices of the pool that were not drawn, whose masks stay hidden."""
    drawn, pool = set(folders["train"].stems), folders["pool"]
    return some(pool, [stem for stem in pool.stems if stem not in drawn])


def draw_validation(val: PairFolder, count: int, seed: int, redraw: int) -> PairFolder:
    """As many validation slices as training slices, or all where there are fewer: they are annotated as well."""
    order = permutation_for(len(val.stems), seed, "validation", redraw)
    return some(val, [val.stems[i] for i in order[:count]])


def split_at_random(root: Path, out: Path, seed: int) -> Path:
    """The slices of a data root dealt anew into parts of the same sizes: neighbours then are in different parts."""
    if (out / "test" / "dataset.json").is_file():
        return out
    parts = {part: open_pairs(root / part) for part in PARTS}
    digests = {part: digests_of(folder) for part, folder in parts.items()}
    slices = [(part, stem) for part, folder in parts.items() for stem in folder.stems]
    order = permutation_for(len(slices), seed)
    first = 0
    for part, folder in parts.items():
        dealt = [slices[i] for i in sorted(order[first : first + len(folder.stems)])]
        first += len(folder.stems)
        shutil.rmtree(out / part, ignore_errors=True)  # half written when a study was killed
        info = replace(folder.info, split={"rule": "random", "part": part, "seed": seed})
        pairs = (
            (f"{stem}_{old}", parts[old].image(stem), parts[old].mask(stem), digests[old].get(stem))
            for old, stem in dealt
        )
        write_pairs(out / part, info, pairs)
    return out
