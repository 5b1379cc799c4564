"""Classes and palette: K classes are a prefix of K + 1, and colour masks come back exactly, through PNG."""

import numpy as np
import pytest
from PIL import Image

from natural2nanoscale.data.classes import IGNORE_COLOR, IGNORE_ID, MAX_CLASSES, Classes, color_table, palette
from natural2nanoscale.errors import InputError


def test_palette_starts_as_in_the_paper_and_grows_by_prefixes():
    assert palette(3) == ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    for count in range(2, MAX_CLASSES):
        assert palette(count) == palette(count + 1)[:count]


def test_each_further_color_lies_farthest_from_those_before():
    colors = np.array([IGNORE_COLOR, *palette(MAX_CLASSES)])
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), -1).reshape(-1, 3)
    for count in range(4, MAX_CLASSES + 1):
        farthest = ((grid[:, None] - colors[:count]) ** 2).sum(-1).min(1).max()
        assert ((colors[count] - colors[:count]) ** 2).sum(-1).min() == farthest


def test_palette_colors_are_distinct_and_none_is_black():
    colors = palette(MAX_CLASSES)
    assert len(set(colors)) == MAX_CLASSES
    assert IGNORE_COLOR not in colors
    gaps = np.abs(np.array(colors)[:, None].astype(int) - np.array([*colors, IGNORE_COLOR])).max(axis=-1)
    assert np.sort(gaps, axis=1)[:, 1].min() >= 51  # no two colours closer than one step of the grid


def test_palette_refuses_impossible_counts():
    for count in (0, 1, MAX_CLASSES + 1):
        with pytest.raises(InputError, match="2 to 64"):
            palette(count)


def test_color_masks_survive_png_for_every_class_count(tmp_path):
    rng = np.random.default_rng(0)
    for count in range(2, MAX_CLASSES + 1):
        colors = palette(count)
        mask = rng.permutation(np.resize([*range(count), IGNORE_ID], 9 * 11)).reshape(9, 11).astype(np.uint8)
        Image.fromarray(color_table(colors)[mask]).save(tmp_path / "mask.png")
        Image.fromarray(mask).save(tmp_path / "ids.png")
        ids = np.array([*range(count), IGNORE_ID])
        same = (np.asarray(Image.open(tmp_path / "mask.png"))[:, :, None] == color_table(colors)[ids]).all(axis=3)
        assert (same.sum(axis=2) == 1).all() and np.array_equal(ids[same.argmax(axis=2)], mask)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "ids.png")), mask)


def test_classes_survive_json():
    classes = Classes.named("background", "cytoplasm", "nucleus", "vessel")
    assert Classes.from_json(list(reversed(classes.to_json()))) == classes
    assert classes.count == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entries: entries[:1],
        lambda entries: [entries[0], entries[2]],
        lambda entries: [*entries, {"id": 3, "name": "black", "color": [0, 0, 0]}],
        lambda entries: [*entries, {"id": 3, "name": "red again", "color": [255, 0, 0]}],
        lambda entries: [*entries, {"id": 3, "name": "beyond", "color": [0, 0, 256]}],
        lambda entries: [{"id": i, "name": str(i), "color": [1, i // 2, i]} for i in range(65)],
    ],
    ids=["one class", "gap", "black", "twice", "beyond 255", "65 classes"],
)
def test_impossible_class_tables_are_refused(spoil):
    with pytest.raises(ValueError):
        Classes.from_json(spoil(Classes.named("a", "b", "c").to_json()))
