"""Which slices a study learns from: its volumes, their splits, what is drawn from them, and rotated copies."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from natural2nanoscale.data.folders import PARTS, PairFolder, open_pairs, write_pairs
from natural2nanoscale.data.roots import digests_of, learned_from_folder, refuse_unfit
from natural2nanoscale.draws import sample_seeds
from natural2nanoscale.phantom.volume import PhantomSettings, write_phantom
from natural2nanoscale.seeds import permutation_for, seed_for
from natural2nanoscale.segmentation.augmentation import augment
from natural2nanoscale.segmentation.schedule import check
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices, load_slices


def check_study(folders: dict[str, PairFolder], budgets: Iterable[Settings]) -> None:
    """Raise InputError for pair folders train, val and test that no study can end on; nothing is written yet."""
    refuse_unfit([learned_from_folder(folders["train"])], [folders["val"], folders["test"]])
    training, validation = load_slices(folders["train"]), load_slices(folders["val"])
    for settings in budgets:
        check(training, validation, replace(settings, balance=None))


def redraw_root(out: Path, data: Path | None, phantom: PhantomSettings, seed: int, redraw: int) -> Path:
    """The data root of one redraw: `data`, or a phantom of its own in `out`."""
    if data is not None:
        return data
    root = out / "phantom"
    if not root.exists():
        write_phantom(root, replace(phantom, seed=seed_for(seed, "redraw", redraw)))
    return root


def draw_train(out: Path, pool: PairFolder, count: int, seed: int, redraw: int) -> PairFolder:
    """`count` slices of the pool as a pair folder of its own; redraws share none while there are enough.

    The pool is shuffled and dealt out in sets of `count`; when it is used up, it is shuffled and dealt out anew. Where
    all are taken, it is the pool itself.
    """
    if count == len(pool.stems):
        return pool
    if not (out / "dataset.json").is_file():
        shutil.rmtree(out, ignore_errors=True)  # half written when a study was killed
        rounds, turn = divmod(redraw, len(pool.stems) // count)
        order = permutation_for(len(pool.stems), seed, "slices", rounds)
        chosen = [pool.stems[i] for i in sorted(order[turn * count : (turn + 1) * count])]
        info = replace(pool.info, digests=digests_of(pool))
        write_pairs(out, info, ((stem, pool.image(stem), pool.mask(stem)) for stem in chosen))
    return open_pairs(out)


def some(folder: PairFolder, stems: Iterable[str]) -> PairFolder:
    """The slices of a folder that are named, without copies on the disk."""
    wanted = set(stems)
    kept = [i for i, stem in enumerate(folder.stems) if stem in wanted]
    return replace(folder, stems=tuple(folder.stems[i] for i in kept), shapes=tuple(folder.shapes[i] for i in kept))


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


def rotated_copies(slices: Slices, count: int, seed: int) -> Slices:
    """`count` rotated slices and masks: copy i is a function of (seed, i), of slice i modulo their number."""
    images, masks = [], []
    for copy in range(count):
        image, mask = slices.images[copy % len(slices)], slices.masks[copy % len(slices)]
        pixels, ids = torch.from_numpy(image).float()[None, None], torch.from_numpy(mask)[None]
        seeds = sample_seeds(torch.tensor([[copy]]), seed, "copy")
        warped, ids = augment(pixels, ids, "rotation", seeds, mask.shape, Settings.angle)
        images.append(warped[0, 0].round().clamp(0, 255).to(torch.uint8).numpy())
        masks.append(ids[0].numpy())
    return Slices(images, masks, slices.classes, count, slices.intensity_window)
