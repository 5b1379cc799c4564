"""`prepare --unlabelled`: slices without masks, converted as the training part is, never those that are held out."""

import json

import numpy as np
import pytest
import tifffile
from em_source import THIRDS, Source, fill, stack
from PIL import Image

from natural2nanoscale.data.digests import slice_digest
from natural2nanoscale.data.folders import open_images
from natural2nanoscale.errors import InputError


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


def volume(source, count=40, annotated=20):
    """A 16-bit stack of which the first slices have masks that are not blank."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60000, (count, 12, 16)).astype(np.uint16)
    masks = np.zeros((count, 12, 16), np.uint8)
    masks[:annotated] = stack(annotated, 12, 16)[1]
    tifffile.imwrite(source.folder / "all.tif", images, photometric="minisblack")
    tifffile.imwrite(source.folder / "masks.tif", masks, photometric="minisblack")
    return images


def prepared(source, *arguments, unlabelled, **places):
    parts = source.prepare("--unlabelled", source.folder / unlabelled, *arguments, **places)
    return parts, open_images(source.out / "unlabelled")


def test_of_the_same_stack_all_but_the_held_out_slices_and_those_within_the_gap(source, capsys):
    images = volume(source)
    split = ("--val", "0.1", "--test", "0.1", "--gap", "2")
    parts, folder = prepared(source, *split, unlabelled="all.tif", images="all.tif", masks="masks.tif")
    held = [int(stem[-4:]) for part in ("val", "test") for stem in parts[part].stems]
    expected = [i for i in range(40) if all(abs(i - number) > 2 for number in held)]
    assert [int(stem[-4:]) for stem in folder.stems] == expected and len(expected) < 36
    assert folder.info.intensity_window == parts["train"].info.intensity_window
    low, high = parts["train"].info.intensity_window
    for stem in folder.stems:
        pixels = images[int(stem[-4:])]
        scaled = np.clip(np.round((pixels.astype(float) - low) * 255 / (high - low)), 0, 255)
        assert np.array_equal(folder.image(stem), scaled) and folder.info.digests[stem] == slice_digest(pixels)
    assert folder.info.classes == parts["train"].info.classes and not folder.info.transductive
    assert not (folder.path / "masks").exists() and folder.shapes == ((12, 16),) * len(expected)
    said = capsys.readouterr().out
    assert f"left out: {40 - len(expected)} that are validation or test slices, or lie within 2 of such" in said
    assert f"unlabelled: {len(expected)} slices without masks" in said and "no warnings" in said


def test_transductive_keeps_them_and_says_so(source, capsys):
    volume(source)
    arguments = ("--gap", "2", "--transductive")
    _parts, folder = prepared(source, *arguments, unlabelled="all.tif", images="all.tif", masks="masks.tif")
    assert len(folder.stems) == 40
    assert json.loads((folder.path / "dataset.json").read_text())["transductive"] is True
    assert "transductive: validation and test slices may be among them" in capsys.readouterr().out


def test_other_folders_of_the_same_numbering(source):
    """The rest of a stack, under its numbers: a slice beside a test slice is left out though nothing else tells it."""
    images, masks = stack(60, 12, 16)
    (source.folder / "rest").mkdir()
    for i in range(60):
        if i < 40 and i % 2 == 0:
            source.add(f"slice_{i:04d}.png", images[i], masks[i])
        else:
            Image.fromarray(images[i]).save(source.folder / "rest" / f"slice_{i:04d}.png")
    parts, folder = prepared(source, "--gap", "1", unlabelled="rest")
    held = [int(stem[-4:]) for part in ("val", "test") for stem in parts[part].stems]
    kept = [int(stem[-4:]) for stem in folder.stems]
    assert kept and all(abs(a - b) > 1 for a in held for b in kept) and max(kept) == 59
    assert all(np.array_equal(folder.image(stem), images[int(stem[-4:])]) for stem in folder.stems)


def test_copies_under_other_names_held_out_groups_and_tiles(source, capsys):
    images, _masks = fill(source, shape=(24, 32))
    (source.folder / "more").mkdir()
    for i in range(5):
        Image.fromarray(images[i]).save(source.folder / "more" / f"{'edcba'[i]}.png")
    _parts, folder = prepared(source, *THIRDS, "--size", "16x12", unlabelled="more")
    assert {stem[0] for stem in folder.stems} == set("edc") and len(folder.stems) == 3 * 4
    assert np.array_equal(folder.image("c_y0012_x0016"), images[2][12:, 16:])
    assert folder.info.digests["c_y0012_x0016"] == slice_digest(images[2][12:, 16:])


def test_what_a_group_holds_out_is_no_unlabelled_slice(source):
    images, masks = stack(12, 12, 16)
    (source.folder / "more").mkdir()
    for i in range(12):
        if i < 9:
            source.add(f"rat{i // 3}_{i:02d}.png", images[i], masks[i])
        else:
            Image.fromarray(images[i]).save(source.folder / "more" / f"rat{i - 9}_{i + 50}.png")
    groups = ("--group", r"(rat\d)", "--val-groups", "rat1", "--test-groups", "rat2")
    assert prepared(source, *groups, unlabelled="more")[1].stems == ("rat0_59",)


def test_refusals(source):
    images, _masks = fill(source)
    source.refuses("--transductive goes with --unlabelled", "--transductive")
    source.refuses("does not exist", "--unlabelled", source.folder / "nowhere")
    held = source.folder / "held"
    held.mkdir()
    Image.fromarray(images[4]).save(held / "x.png")
    source.refuses("all 1 slices of .*held are .* `--transductive`", *THIRDS, "--unlabelled", held)
    Image.fromarray(images[4].astype(np.uint16) * 200).save(held / "x.png")
    source.refuses("x.png is of type uint16 but the slices with masks of uint8", *THIRDS, "--unlabelled", held)


def test_a_folder_of_slices_is_validated(source, tmp_path, verb):
    fill(source)
    images, _masks = stack(3, 12, 16, seed=9)
    (tmp_path / "more").mkdir()
    for i in range(3):
        Image.fromarray(images[i]).save(tmp_path / "more" / f"other_{i}.png")
    parts, folder = prepared(source, *THIRDS, unlabelled="more")
    assert len(folder.stems) == 3
    (folder.path / "images" / "other_1.png").unlink()
    for place, message in (("/dev/zero", "no regular file"), ("nowhere.png", "cannot be read")):
        (folder.path / "images" / "other_1.png").symlink_to(place)
        with pytest.raises(InputError, match=f"other_1.png .*{message}"):
            open_images(folder.path)
        (folder.path / "images" / "other_1.png").unlink()
    Image.fromarray(parts["test"].image(parts["test"].stems[0])).save(folder.path / "images" / "a_copy.png")
    assert "1 validation and test slices are among the unlabelled ones" in verb("check", source.out).stdout
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(folder.path / "images" / "a_copy.png")
    with pytest.raises(InputError, match="a_copy.png is a 8-bit rgb picture"):
        open_images(folder.path)
