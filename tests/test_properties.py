"""What must hold for every input of a kind, tried on many that a seed draws."""

import numpy as np
import pytest
import torch
from em_source import Source
from PIL import Image

from natural2nanoscale.data.classes import IGNORE_COLOR, IGNORE_ID, MAX_CLASSES, color_table, palette
from natural2nanoscale.data.encoders import decode_gray, encode_gray, encode_mask
from natural2nanoscale.data.prepare.convert import tile_corners
from natural2nanoscale.data.prepare.splits import default_gap, split_blocks, split_random
from natural2nanoscale.segmentation.inference import in_bands

ROUNDS = range(20)


def draw_ids(rng: np.random.Generator, classes: int, ignored: bool) -> np.ndarray:
    """A mask (H,W) uint8 of odd size in which every class occurs, and the ignore id if asked."""
    ids = rng.integers(0, classes, rng.integers(9, 30, 2)).astype(np.uint8)
    ids.flat[:classes] = np.arange(classes)
    if ignored:
        ids.flat[classes : classes + 3] = IGNORE_ID
    return ids


@pytest.mark.parametrize("seed", ROUNDS)
def test_ids_to_colours_and_back(seed):
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, MAX_CLASSES + 1))
    colors = palette(classes)
    ids = draw_ids(rng, classes, ignored=seed % 2 == 0)
    conditioning = encode_mask(torch.from_numpy(ids)[None], colors)[0]
    picture = (255 * conditioning).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(picture, color_table(colors)[ids])
    assert len({*colors, IGNORE_COLOR}) == classes + 1  # so that ids can be told from colours


def test_grey_values_survive_the_way_to_pseudo_rgb_and_back():
    greys = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert torch.equal(decode_gray(encode_gray(greys)), greys)


CODINGS = {  # how a mask lies in a file -> (writer of (ids, classes), arguments of prepare)
    "8-bit ids": lambda ids, n: (Image.fromarray(ids), []),
    "16-bit ids": lambda ids, n: (Image.fromarray(ids.astype(np.uint16)), []),
    "palette": lambda ids, n: (palette_picture(ids), ["--classes", ",".join(f"c{i}" for i in range(n))]),
    "colours": lambda ids, n: (Image.fromarray(color_table(palette(n))[ids]), ["--colors", named_colors(n)]),
    "spread ids": lambda ids, n: (Image.fromarray(ids * 7), ["--map", ",".join(f"{7 * i}={i}" for i in range(n))]),
    "RGB ids": lambda ids, n: (Image.fromarray(np.repeat(ids[..., None], 3, 2)), []),
}


def palette_picture(ids: np.ndarray) -> Image.Image:
    picture = Image.fromarray(ids, "P")
    picture.putpalette(np.random.default_rng(0).permutation(768).astype(np.uint8).tobytes())
    return picture


def named_colors(classes: int) -> str:
    return ",".join(f"c{i}=#{r:02x}{g:02x}{b:02x}" for i, (r, g, b) in enumerate(palette(classes)))


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("seed", range(4))
def test_ids_survive_a_file_and_prepare(coding, seed, tmp_path):
    rng, source = np.random.default_rng(seed), Source(tmp_path)
    classes, shape = int(rng.integers(2, 9)), None
    truth = {}
    for i in range(5):
        ids = draw_ids(rng, classes, ignored=False)
        shape = shape or ids.shape
        ids = np.resize(ids, shape)
        picture, arguments = CODINGS[coding](ids, classes)
        source.add(f"s_{i}.png", rng.integers(0, 256, shape).astype(np.uint8), ids)
        picture.save(tmp_path / "masks" / f"s_{i}.png")
        truth[f"s_{i}"] = ids
    parts = source.prepare("--val", "0.2", "--test", "0.2", "--gap", "0", *arguments)
    found = {stem: folder.mask(stem) for folder in parts.values() for stem in folder.stems}
    assert found.keys() == truth.keys()
    for stem, ids in truth.items():
        assert np.array_equal(found[stem], ids)


@pytest.mark.parametrize("seed", ROUNDS)
def test_splits_are_disjoint_and_complete(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(12, 400))
    val, test = rng.uniform(0.05, 0.3, 2)
    parts = split_blocks(count, val, test, default_gap(count))
    assert len(parts) == count and {"train", "val", "test"} <= set(parts) <= {"train", "val", "test", None}
    stems = [f"s{i}" for i in range(count)]
    random = split_random(stems, val, test, seed)
    assert len(random) == count and None not in random and {"train", "val", "test"} == set(random)


@pytest.mark.parametrize("seed", ROUNDS)
def test_tiles_answer_for_every_pixel_once(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(1, 400, 2))
    margin = int(rng.integers(1, 20))
    tile = int(rng.integers(4 * margin, 4 * margin + 60))
    slice_ = torch.from_numpy(rng.integers(0, 256, (1, *shape)).astype(np.uint8))
    seen = []

    def answer(part):
        seen.append(part.shape[1:])
        return part[:, None].double()

    rows = list(in_bands(answer, slice_, tile, margin))
    assert max(max(shape) for shape in seen) <= tile
    assert [top for top, _ in rows] == np.cumsum([0, *(band.shape[2] for _, band in rows[:-1])]).tolist()
    assert torch.allclose(torch.cat([band for _, band in rows], 2)[:, 0], slice_.double())


@pytest.mark.parametrize("seed", ROUNDS)
def test_tiles_of_prepare_lie_in_the_slice_and_do_not_overlap(seed):
    rng = np.random.default_rng(seed)
    size = tuple(int(n) for n in rng.integers(20, 300, 2))
    tile = tuple(int(rng.integers(10, n + 1)) for n in size)
    covered = np.zeros(size[::-1], int)
    corners = tile_corners(size[::-1], tile, None)
    assert len(corners) == (size[0] // tile[0]) * (size[1] // tile[1])
    for left, top in corners:
        assert 0 <= left <= size[0] - tile[0] and 0 <= top <= size[1] - tile[1]
        covered[top : top + tile[1], left : left + tile[0]] += 1
    assert covered.max() == 1
