"""The masks that slices are drawn from: as they were annotated, deformed, or between two of them."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from natural2nanoscale.data.augment import ELASTIC_SIGMA, ELASTIC_STRENGTH, elastic_offsets, warp
from natural2nanoscale.data.classes import IGNORE_ID
from natural2nanoscale.data.folders import DOUBT, DatasetInfo, PairFolder, stems_of
from natural2nanoscale.data.readers.gray import read_gray
from natural2nanoscale.data.roots import digests_of
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.draws import uniform
from natural2nanoscale.errors import InputError
from natural2nanoscale.seeds import seed_for

LARGEST_SCALE = 1.25  # of a deformation; the smallest is its inverse


class MaskFolder(PairFolder):
    """Masks without slices of their own. Where a slice is asked for, to be hashed, the mask stands in its place."""

    def mask(self, stem: str) -> np.ndarray:
        """(H,W) uint8 class ids, 255 = ignore."""
        return read_gray(self.image_files[stem], indexed=True)

    image = mask


def open_masks(path: Path, info: DatasetInfo) -> MaskFolder:
    """A folder of PNG masks of the class ids of `info`; InputError for other values, and where there is no mask."""
    files = {stem: file for stem, file in stems_of(path).items() if file.suffix == ".png"}
    if not files:
        raise InputError(f"{path} holds neither dataset.json nor PNG masks: name a pair folder, or one of such masks")
    known, shapes = {*range(info.classes.count), IGNORE_ID}, []
    for file in files.values():
        mask = read_gray(file, indexed=True)
        shapes.append(mask.shape)
        strange = set(np.unique(mask).tolist()) - known
        if strange:
            raise InputError(
                f"{file} has mask values such as {min(strange)}, expected class ids, 0..{info.classes.count - 1}, or "
                f"{IGNORE_ID} to ignore: map them, or name another folder with --masks"
            )
    return MaskFolder(path, info, tuple(files), files, tuple(shapes))


def has_slices(source: PairFolder, kind: str) -> bool:
    """Whether a slice belongs to every mask that comes out of a source in a way of `Shapes`."""
    return kind != "between" and not isinstance(source, MaskFolder)


def refuse_sliceless(source: PairFolder, kind: str, settings: SamplingSettings) -> None:
    """Raise InputError where the settings look at slices, or at what is doubted in their masks, and there is none."""
    if settings.keep and (kind != "same" or not (source.path / DOUBT).is_dir()):
        raise InputError(
            f"--keep goes by how sure a U-Net is of masks that it predicted, and {source.path} does not say: pass "
            "--masks predicted, and remove the masks that an earlier version of this package predicted"
        )
    if settings.sees_slice and not has_slices(source, kind):
        masks = "between others" if kind == "between" else f"of {source.path}"
        raise InputError(
            f"masks {masks} have no slices of their own to start at (--start {settings.start:g}), to take edges from "
            f"({settings.condition}) or detail from: pass --start 1 and --edges none, and leave out --detail"
        )


class Shapes:
    """Masks by (source, copy), and the slices that belong to them: functions of these and the seed alone.

    kind: "same", the masks of the source; "deformed", these and their slices deformed alike; "between", interpolated
    between a mask and one of its neighbours of equal size, to which no slice belongs.
    Raises InputError where the settings look at slices and there are none, and for a mask without a neighbour.
    """

    def __init__(self, source: PairFolder, kind: str, seed: int, settings: SamplingSettings):
        self.source, self.kind, self.seed, self.digests = source, kind, seed, digests_of(source)
        self.sizes = dict(zip(source.stems, source.shapes, strict=False))
        self._mask = lru_cache(16)(source.mask)  # copies of a mask are drawn one after the other
        self._distances = lru_cache(4)(lambda stem: signed_distances(source.mask(stem)))
        refuse_sliceless(source, kind, settings)
        self._neighbours = {stem: self._beside(stem) for stem in source.stems} if kind == "between" else {}

    def _beside(self, stem: str) -> list[str]:
        alike = [other for other in self.source.stems if self.sizes[other] == self.sizes[stem]]
        place = alike.index(stem)
        if len(alike) == 1:
            raise InputError(
                f"the mask {stem!r} of {self.source.path} is the only one of its size, expected another to interpolate "
                "with: annotate one more, or pass --masks deformed"
            )
        return [alike[i] for i in (place - 1, place + 1) if 0 <= i < len(alike)]

    def mask(self, stem: str, copy: int) -> np.ndarray:
        """(H,W) uint8 class ids, 255 = ignore."""
        if self.kind == "deformed":
            return deform(self._mask(stem), None, self.deformation_seed(stem, copy))[0]
        if self.kind == "between":
            neighbour, share = self.interpolation(stem, copy)
            return interpolate(self._distances(stem), self._distances(neighbour), share)
        return self._mask(stem)

    def image(self, stem: str, copy: int) -> np.ndarray:
        """(H,W) uint8 grey values of the slice that belongs to the mask."""
        image = self.source.image(stem)
        if self.kind == "deformed":
            return deform(self._mask(stem), image, self.deformation_seed(stem, copy))[1]
        return image

    def doubt(self, stem: str) -> np.ndarray:
        """(H,W) uint8: how sure of its mask a U-Net is, as `segmentation.labelling.labelled` writes it."""
        return read_gray(self.source.path / DOUBT / f"{stem}.png")

    def facts(self, stem: str, copy: int) -> dict:
        """What a manifest's line says of the mask, besides its source: nothing of an annotated one as it is."""
        split = self.source.info.split
        facts = {"unet": split["unet"]} if "unet" in split else {}
        if self.kind == "deformed":
            facts |= {"masks": self.kind, "deformation_seed": self.deformation_seed(stem, copy)}
        if self.kind == "between":
            neighbour, share = self.interpolation(stem, copy)
            facts |= {"masks": self.kind, "neighbour": neighbour, "share": share}
            facts["neighbour_digest"] = self.digests.get(neighbour)
        return facts

    def deformation_seed(self, stem: str, copy: int) -> int:
        """Seed of `deform`."""
        return seed_for(self.seed, "deformation", stem, copy)

    def interpolation(self, stem: str, copy: int) -> tuple[str, float]:
        """Which neighbour, and its share in [0,1)."""
        which, share = uniform(torch.tensor([seed_for(self.seed, "between", stem, copy)]), 2)[0].tolist()
        beside = self._neighbours[stem]
        return beside[int(which * len(beside))], share


def deform(mask: np.ndarray, image: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A mask (H,W) uint8 and its slice (H,W) uint8 turned by any angle, mirrored in half of the draws, scaled by 0.8 to
    1.25 and bent as by `--augment elastic`: one field for both. What lies beyond the borders is their mirror image."""
    height, width = mask.shape
    seeds, side = torch.tensor([seed]), min(mask.shape)
    turn, mirror, size = uniform(seeds, 3)[0].tolist()
    scale = LARGEST_SCALE ** (2 * size - 1)
    offsets = elastic_offsets(~seeds, mask.shape, ELASTIC_SIGMA * side, ELASTIC_STRENGTH * side)
    ids = torch.from_numpy(mask)[None]
    values = ids.float()[None] if image is None else torch.from_numpy(image).float()[None, None]
    center = torch.tensor([[(width - 1) / 2, (height - 1) / 2]])
    scales = torch.tensor([[scale if mirror < 0.5 else -scale, scale]])
    values, ids = warp(values, ids, torch.tensor([360 * turn]), center, mask.shape, scales, offsets)
    return ids[0].numpy(), values[0, 0].round().to(torch.uint8).numpy()


def interpolate(first: dict[int, np.ndarray], second: dict[int, np.ndarray], share: float) -> np.ndarray:
    """The mask (H,W) uint8 between two, by their `signed_distances`: each pixel takes the class in which it lies
    deepest. share: the second one's, in [0,1]."""
    ids = sorted(first | second)
    nowhere = np.full_like(next(iter(first.values())), -np.inf)
    planes = []
    for id_ in ids:
        one, other = first.get(id_, nowhere), second.get(id_, nowhere)
        planes.append((1 - share) * _bounded(one, other) + share * _bounded(other, one))
    return np.array(ids, np.uint8)[np.argmax(planes, axis=0)]


def _bounded(plane: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of a class that is nowhere or everywhere in a mask, the other mask's extreme, so that it shrinks to nothing."""
    if np.isfinite(plane.flat[0]):
        return plane
    sign = np.sign(plane.flat[0])
    extreme = (-sign * other).max()
    return np.full_like(plane, sign * (extreme if np.isfinite(extreme) else 1))


def signed_distances(mask: np.ndarray) -> dict[int, np.ndarray]:
    """Of every id in a mask (H,W): the distance (H,W) float32 in pixels to its boundary, positive inside; infinite for
    the only one."""
    ids = np.unique(mask).tolist()
    if len(ids) == 1:
        return {ids[0]: np.full(mask.shape, np.inf, np.float32)}
    distances = {}
    for id_ in ids:
        inside = mask == id_
        depth = np.sqrt(squared_distances(inside)) - np.sqrt(squared_distances(~inside))
        distances[id_] = np.where(inside, depth - 0.5, depth + 0.5).astype(np.float32)
    return distances


def squared_distances(inside: np.ndarray) -> np.ndarray:
    """(H,W) bool -> (H,W) int32: the exact squared distance in pixels to the nearest pixel outside, of which there is
    one. First along the rows, then across them (Felzenszwalb and Huttenlocher 2012), by steps of growing length until
    none can be shorter."""
    height, width = inside.shape
    place, far = np.arange(width, dtype=np.int32), height + width
    left = np.maximum.accumulate(np.where(inside, -far, place), axis=1)  # the last pixel outside, up to here
    right = np.minimum.accumulate(np.where(inside, 2 * far, place)[:, ::-1], axis=1)[:, ::-1]
    along = np.minimum(np.minimum(place - left, right - place), far).astype(np.int32) ** 2
    squared = along.copy()
    for step in range(1, height):
        if step**2 >= squared.max():
            break
        np.minimum(squared[step:], along[:-step] + step**2, out=squared[step:])
        np.minimum(squared[:-step], along[step:] + step**2, out=squared[:-step])
    return squared
