"""The pair-folder contract: what is written is read back, and what is broken is named."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import DatasetInfo, fingerprint, natural_order, open_pairs, write_pairs
from natural2nanoscale.errors import InputError

INFO = DatasetInfo("cells", "prepared", Classes.named("a", "b", "c"), (120.0, 40000.0), 8.0, {"rule": "block"})


def triples(*stems: str, shape: tuple[int, int] = (6, 9)):
    rng = np.random.default_rng(0)
    for stem in stems:
        mask = rng.choice([0, 1, 2, 255], shape).astype(np.uint8)
        yield stem, rng.integers(0, 256, shape, dtype=np.uint8), mask


@pytest.fixture
def folder(tmp_path):
    return write_pairs(tmp_path / "train", INFO, triples("slice_9", "slice_10", "slice_100"))


def test_pairs_and_description_come_back(folder):
    again = open_pairs(folder.path)
    assert again.info == INFO
    assert again.stems == ("slice_9", "slice_10", "slice_100")
    for stem, image, mask in triples(*again.stems):
        assert np.array_equal(again.image(stem), image)
        assert np.array_equal(again.mask(stem), mask)
    images, masks = again.load()
    assert np.array_equal(masks[1], again.mask("slice_10")) and len(images) == 3
    assert json.loads((folder.path / "dataset.json").read_text())["ignore_id"] == 255


def test_pairs_match_by_stem_and_not_by_position(folder):
    image = folder.image("slice_9")
    (folder.path / "images" / "slice_9.png").unlink()
    Image.fromarray(image).save(folder.path / "images" / "slice_9.tif")  # sorts after all PNGs
    assert np.array_equal(open_pairs(folder.path).image("slice_9"), image)


def test_nothing_is_overwritten(folder):
    before = sorted(path.read_bytes() for path in folder.path.rglob("*.png"))
    with pytest.raises(InputError, match="not an empty folder"):
        write_pairs(folder.path, INFO, triples("other"))
    assert sorted(path.read_bytes() for path in folder.path.rglob("*.png")) == before


def test_natural_order_reads_numbers():
    stems = ["b2", "a10", "a9", "a09x", "10", "9", "a²", "a"]
    assert sorted(stems, key=natural_order) == ["9", "10", "a", "a9", "a09x", "a10", "a²", "b2"]


def test_fingerprint_sees_pixels_stems_and_classes_only(folder, tmp_path):
    first = fingerprint(folder)
    shutil.copytree(folder.path, tmp_path / "copy")
    (tmp_path / "copy" / "images" / ".hidden.png").write_bytes(b"no picture")
    assert fingerprint(open_pairs(tmp_path / "copy")) == first
    mask = folder.mask("slice_9").copy()
    mask[0, 0] = (mask[0, 0] + 1) % 3 if mask[0, 0] != 255 else 0
    Image.fromarray(mask).save(tmp_path / "copy" / "masks" / "slice_9.png")
    assert fingerprint(open_pairs(tmp_path / "copy")) != first
    renamed = DatasetInfo("cells", "prepared", Classes.named("a", "b", "d"))
    stems = ("slice_9", "slice_10", "slice_100")
    assert fingerprint(write_pairs(tmp_path / "renamed", renamed, triples(*stems))) != first


def save(folder, name, pixels, **options):
    Image.fromarray(np.array(pixels)).save(folder.path / name, **options)


def indexed(folder):
    picture = Image.fromarray(np.zeros((6, 9), np.uint8), mode="P")
    picture.putpalette([255, 0, 0] * 256)
    picture.save(folder.path / "images" / "slice_9.png")


def truncate(folder, name):
    whole = (folder.path / name).read_bytes()
    (folder.path / name).write_bytes(whole[: len(whole) // 2])


def describe(folder, **changes):
    data = json.loads((folder.path / "dataset.json").read_text()) | changes
    (folder.path / "dataset.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f.path / "masks/slice_10.png").unlink(), "without a mask .*'slice_10'"),
        (lambda f: (f.path / "images/slice_10.png").unlink(), "without an image .*'slice_10'"),
        (lambda f: (f.path / "masks/slice_9.png").rename(f.path / "masks/slice_9.tif"), "without a mask"),
        (lambda f: save(f, "images/slice_9.tif", np.zeros((6, 9), np.uint8)), "two pictures .*'slice_9'"),
        (lambda f: save(f, "masks/slice_9.png", np.zeros((9, 6), np.uint8)), "9x6 but its mask is 6x9"),
        (lambda f: save(f, "masks/slice_9.png", np.full((6, 9), 7, np.uint8)), r"has .* 7 \(54 px\)"),
        (lambda f: save(f, "images/slice_9.png", np.zeros((6, 9), np.uint16)), "16-bit grey picture.*prepare"),
        (lambda f: save(f, "images/slice_9.png", np.zeros((6, 9, 3), np.uint8)), "rgb picture.*prepare"),
        (indexed, "palette picture.*prepare"),
        (lambda f: truncate(f, "images/slice_9.png"), "slice_9.png cannot be read"),
        (lambda f: (f.path / "images/slice_9.png").write_bytes(b""), "slice_9.png cannot be read"),
        (lambda f: (f.path / "dataset.json").unlink(), "no dataset.json.*prepare"),
        (lambda f: (f.path / "dataset.json").write_text("{"), "cannot be read as what it should be"),
        (lambda f: (f.path / "dataset.json").write_text("[]"), "cannot be read as what it should be"),
        (lambda f: describe(f, classes=[]), "2 to 64 classes"),
        (lambda f: describe(f, intensity_window=[1]), "not a valid dataset description"),
    ],
)  # fmt: skip
def test_whatever_is_broken_is_named(folder, spoil, said):
    spoil(folder)
    with pytest.raises(InputError, match=said):
        open_pairs(folder.path)


def test_an_empty_folder_is_no_pair_folder(tmp_path):
    with pytest.raises(InputError, match="no picture|no PNG"):
        write_pairs(tmp_path / "empty", INFO, [])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_cut_and_flipped_files_give_one_kind_of_error(tmp_path):
    """No library exception of whatever kind may pass for a traceback: every damage is an InputError."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    folder = write_pairs(tmp_path / "train", INFO, [("a", pixels, pixels % 3)])
    for suffix in (".png", ".tif"):
        for old in (folder.path / "images").iterdir():
            old.unlink()
        file = folder.path / "images" / f"a{suffix}"
        Image.fromarray(pixels).save(file)
        whole = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
            file.write_bytes(damaged[: rng.integers(1, len(whole) + 1)].tobytes())
            try:
                open_pairs(folder.path)
            except InputError as error:
                assert "a" + suffix in str(error) or "image 'a'" in str(error)
