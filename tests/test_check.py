"""`check` and the contact sheet: what they tell of a data root is so."""

import numpy as np
import pytest
from em_source import THIRDS, Source, run_verb, stack
from PIL import Image

from natural2nanoscale.data.check import open_root, report
from natural2nanoscale.data.folders import write_pairs
from natural2nanoscale.data.sheets import sheet
from natural2nanoscale.errors import InputError
from natural2nanoscale.verbs import check


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path)


def test_leaks_are_told(source, data_folder, capsys):
    copy = (data_folder / "train" / "images" / "slice_0001.png").read_bytes()
    (data_folder / "test" / "images" / "slice_0000.png").write_bytes(copy)
    (data_folder / "test" / "images" / "slice_0001.png").rename(data_folder / "test" / "images" / "own.png")
    (data_folder / "test" / "masks" / "slice_0001.png").rename(data_folder / "test" / "masks" / "own.png")
    run_verb(check, data_folder)
    said = capsys.readouterr().out
    assert "train and test share 1 stems such as 'slice_0000'" in said
    assert "1 identical images in train and test, such as 'slice_0001' and 'slice_0000'" in said
    assert (data_folder / "contact.png").is_file()


def test_numbers_are_those_of_the_pixels(data_folder, capsys):
    folder = open_root(data_folder)["train"]
    images, masks = folder.load()
    run_verb(check, data_folder / "train", "--contact", data_folder / "sheet.png")
    said = capsys.readouterr().out
    share = 100 * (np.stack(masks) == 2).mean()
    assert f"nucleus {share:.2f} %" in said
    assert f"grey values: {np.stack(images).min()} to {np.stack(images).max()}" in said
    assert "train: 4 slices, 64x32 (4)" in said
    assert not (data_folder / "train" / "contact.png").exists()


def test_synthetic_slices_may_share_masks_but_not_images_with_training(data_folder):
    train = open_root(data_folder)["train"]
    items = [(stem, 255 - train.image(stem), train.mask(stem)) for stem in train.stems]
    write_pairs(data_folder / "synthetic", train.info, items)
    told = report(data_folder)
    assert not [line for line in told if "train and synthetic" in line]


def test_absent_classes_and_flat_images_are_told(source):
    images, masks = stack(5, 8, 8)
    for i in range(5):
        source.add(f"cell_{i}.png", images[i] * 0 + 200, masks[i] % 2)
    source.prepare(*THIRDS, "--classes", "a,b,rare")
    told = report(source.out)
    assert "train has no pixel of rare" in told
    assert any("only 1 grey values" in line for line in told)


def test_what_is_no_data_root(tmp_path, data_folder):
    with pytest.raises(InputError, match="no folder"):
        report(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither train"):
        report(tmp_path / "empty")
    file = data_folder / "val" / "dataset.json"
    file.write_text(file.read_text().replace("nucleus", "vessel"))
    with pytest.raises(InputError, match="other classes"):
        report(data_folder)


def test_contact_sheet_shows_pictures_where_they_belong(tmp_path):
    gray = np.full((10, 20), 77, np.uint8)
    color = np.zeros((10, 20, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    sheet(
        [[gray, color], [color, gray]],
        tmp_path / "sheet.png",
        titles=["real", "mask"],
        labels=["one", "two"],
        width=10,
    )
    picture = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert (picture == (255, 0, 0)).all(-1).sum() == 2 * 5 * 10
    assert (picture == 77).all(-1).sum() >= 2 * 5 * 10
    left = (picture[:, : picture.shape[1] // 2] == (255, 0, 0)).all(-1)
    assert left.any() and not left[: picture.shape[0] // 2].any()  # lower left
