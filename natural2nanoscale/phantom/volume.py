"""A procedural FIB-SEM volume with its labels, cut into neighbouring slices: the embedded dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from natural2nanoscale.cli import at_least, setting, size
from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import DatasetInfo, write_pairs
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import new_folder, refuse_non_empty
from natural2nanoscale.phantom import textures
from natural2nanoscale.phantom.tissue import FIELDS, Anatomy, cut, grow_cells, paint
from natural2nanoscale.seeds import seed_for


@dataclass(frozen=True)
class PhantomSettings:
    """A data root: image size in pixels, slices per part, slices discarded between parts.

    The looks are fixed in tissue.Anatomy and textures.Greys.
    """

    size: tuple[int, int] = setting((224, 128), "slice size in pixels; larger is finer, not more cells", size,
                                    metavar="WxH")  # fmt: skip
    train: int = setting(32, "training slices", at_least(1), metavar="N")
    val: int = setting(8, "validation slices", at_least(1), metavar="N")
    test: int = setting(16, "test slices", at_least(1), metavar="N")
    gap: int = setting(4, "slices discarded between the parts", at_least(0), metavar="N")
    seed: int = setting(0, "another seed is another volume", int, metavar="N")


def volume(depth: int, height: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring slices: images uint8 (D,H,W), masks uint8 (D,H,W), 0 background, 1 cytoplasm, 2 nucleus.

    Seed, depth and proportions decide what is there; a larger size samples the same cells more finely.
    """
    def rng(name: str) -> np.random.Generator:
        return np.random.default_rng(seed_for("phantom", seed, name))

    anatomy, greys = Anatomy(), textures.Greys()
    extent = (depth * anatomy.thickness, 128.0, 128.0 * width / height)
    cells = grow_cells(rng("cells"), extent, anatomy, greys)
    organelles = textures.scatter_organelles(rng("organelles"), extent)
    fields = {}
    for name, (sz, sy, sx) in FIELDS.items():
        step = 4 if min(sy, sx) >= 7 else 1  # units; smooth fields need few samples
        shape = (depth, 128 // step, max(8, round(extent[2] / step)))
        widths = (sz / anatomy.thickness, sy / step, sx / step)
        fields[name] = textures.gaussian_field(rng(name), shape, widths)
    stripes = textures.gaussian_field(rng("stripes"), (depth, width), (1.0, 1.0)) * greys.curtain
    gains, offsets = (textures.gaussian_field(rng(name), (depth,), (1.5,)) for name in ("gain", "offset"))

    images = np.empty((depth, height, width), np.uint8)
    masks = np.empty_like(images)
    for i in range(depth):
        z = (i + 0.5) * anatomy.thickness
        here = {name: textures.resample(field[i], height, width) for name, field in fields.items()}
        grey, masks[i] = paint(cut(z, height, width, cells, here, anatomy), z, cells, here, organelles, greys)
        gain, offset = 1 + greys.drift_gain * gains[i], greys.drift_offset * offsets[i]
        images[i] = textures.detect(grey, rng(f"noise {i}"), stripes[i], gain, offset, greys.noise)
    return images, masks


def write_phantom(out: Path, settings: PhantomSettings) -> None:
    """A data root: train/, val/ and test/ are contiguous blocks of one volume, with discarded slices between.

    Raises InputError when out is not empty or a setting is out of range; then nothing is written.
    """
    out, counts = Path(out), {"train": settings.train, "val": settings.val, "test": settings.test}
    width, height = settings.size
    refuse_non_empty(out)
    if min(counts.values()) < 1 or settings.gap < 0:
        raise InputError(
            f"the phantom's parts have {settings.train}, {settings.val} and {settings.test} slices and a gap "
            f"of {settings.gap}, expected at least 1 slice in each and a gap of 0 or more: raise the number"
        )
    if min(height, width) < 32 or not 0.5 <= width / height <= 8:
        raise InputError(
            f"the phantom's size is {width}x{height}, expected at least 32 pixels each way "
            "and a width of 0.5 to 8 heights: choose another --size"
        )
    total = sum(counts.values()) + 2 * settings.gap
    images, masks = volume(total, height, width, settings.seed)
    classes = Classes.named("background", "cytoplasm", "nucleus")
    first = 0
    with new_folder(out, fresh=True) as root:
        for part, count in counts.items():
            split = {"rule": "block", "part": part, "first": first, "last": first + count - 1, "of": total}
            split |= {"gap": settings.gap, "seed": settings.seed}
            slices = ((f"slice_{i:04d}", images[i], masks[i]) for i in range(first, first + count))
            write_pairs(root / part, DatasetInfo("phantom", "phantom", classes, split=split), slices)
            first += count + settings.gap


def write_default(root: Path) -> None:
    """The data root that the scripts make where a user has none."""
    write_phantom(root, PhantomSettings())
