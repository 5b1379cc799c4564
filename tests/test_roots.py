"""What was learned from is known slice by slice, and no held-out slice, other class table or grey window passes."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import blobs
from PIL import Image

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.digests import slice_digest
from natural2nanoscale.data.folders import DatasetInfo, open_pairs, read_info, write_pairs
from natural2nanoscale.data.roots import (
    data_root,
    digests_of,
    learned_by_run,
    learned_by_synthetic,
    learned_from_folder,
    learned_json,
    refuse_unfit,
)
from natural2nanoscale.errors import InputError

INFO = DatasetInfo("blobs", "prepared", Classes.named("background", "cytoplasm", "nucleus"))


def folder(path, slices, info=INFO):
    return write_pairs(path, info, slices)


def run_that_learned(path, training, **more):
    path.mkdir()
    config = {"kind": "controlnet", "data": {}, "learned": learned_json([learned_from_folder(training)], training.info)}
    (path / "config.json").write_text(json.dumps(config | more))
    return path


def test_one_held_out_slice_among_those_of_a_run_is_refused_and_named(tmp_path):
    eight = list(blobs(8, 32, 64, seed=1))
    run = run_that_learned(tmp_path / "run", folder(tmp_path / "old", eight))
    others = [(f"new_{i}", image, mask) for i, (_, image, mask) in enumerate(blobs(4, 32, 64, seed=2))]
    refuse_unfit([learned_by_run(run)], [folder(tmp_path / "apart", others)])
    mixed = folder(tmp_path / "test", [*others, ("renamed", *eight[5][1:])])
    with pytest.raises(InputError, match=r"run was trained on the slices of .*test such as 'renamed' \(1 of 5\)"):
        refuse_unfit([learned_by_run(run)], [mixed])
    with pytest.raises(InputError, match="holds the slices of .*'renamed'"):
        refuse_unfit([learned_from_folder(folder(tmp_path / "train", eight[4:]))], [mixed])
    with pytest.raises(InputError) as caught:
        refuse_unfit([learned_by_run(run)], [open_pairs(tmp_path / "old")])
    assert str(caught.value).count("'slice_") == 3 and "(8 of 8)" in str(caught.value)


def test_a_checkpoint_and_a_run_that_began_with_another_know_what_that_one_learned(tmp_path):
    first, second = (folder(tmp_path / f"{seed}", blobs(2, 32, 64, seed=seed)) for seed in (1, 2))
    old = run_that_learned(tmp_path / "old", first)
    learned = learned_json([learned_from_folder(second), learned_by_run(old)], second.info)
    new = run_that_learned(tmp_path / "new", second, learned=learned)
    checkpoint = new / "checkpoints" / "step-000002" / "controlnet"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    for path in (new, checkpoint):
        for learned_before in (first, second):
            with pytest.raises(InputError, match="was trained on"):
                refuse_unfit([learned_by_run(path)], [learned_before])


def test_digests_are_of_the_pixels_before_the_grey_window(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 60000, (16, 16)).astype(np.uint16)
    assert slice_digest(pixels) == slice_digest(pixels.astype(np.int32)) != slice_digest(pixels[::-1])
    windows = [(0.0, 60000.0), (500.0, 30000.0)]
    folders = []
    for i, (low, high) in enumerate(windows):
        image = np.clip((pixels - low) * 255 / (high - low), 0, 255).astype(np.uint8)
        items = [("s", image, (image > 99).astype(np.uint8), slice_digest(pixels))]
        folders.append(folder(tmp_path / str(i), items, replace(INFO, intensity_window=windows[i])))
    assert digests_of(folders[0]) == digests_of(folders[1]) == {"s": slice_digest(pixels)}
    with pytest.raises(InputError, match=r"1 has the grey window 500 to 30000, .*0 has the grey window 0 to 60000"):
        refuse_unfit([learned_from_folder(folders[0])], [folders[1]])


def test_folders_from_before_are_known_by_their_fingerprint(tmp_path):
    windowed = replace(INFO, intensity_window=(0.0, 1000.0))
    first, second = (folder(tmp_path / f"{seed}", blobs(3, 32, 64, seed=seed), windowed) for seed in (1, 2))
    assert digests_of(first) == {}
    run = run_that_learned(tmp_path / "run", first)
    refuse_unfit([learned_by_run(run)], [second])
    with pytest.raises(InputError, match="was trained on"):
        refuse_unfit([learned_by_run(run)], [first])
    config = json.loads((run / "config.json").read_text())
    config["data"]["train"] = config.pop("learned")["fingerprints"][0]  # as it stood in such a run
    (run / "config.json").write_text(json.dumps(config))
    refuse_unfit([learned_by_run(run)], [second])
    with pytest.raises(InputError, match="was trained on"):
        refuse_unfit([learned_by_run(run)], [first])
    plain = folder(tmp_path / "plain", blobs(3, 32, 64, seed=1))
    file = plain.path / "dataset.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "digests"}))
    assert digests_of(open_pairs(plain.path)) == digests_of(plain) != {}  # 8-bit pixels are the microscope's own


def test_synthetic_slices_know_their_sources_and_what_their_controlnet_learned(tmp_path):
    train, old, test = (folder(tmp_path / f"{seed}", blobs(3, 32, 64, seed=seed)) for seed in (1, 2, 3))
    info = replace(INFO, origin="synthetic", learned=learned_json([learned_from_folder(old)], old.info))
    made = [(f"{stem}_s000", 255 - train.image(stem), train.mask(stem)) for stem in train.stems]
    synthetic = folder(tmp_path / "synthetic", made, info)
    rows = [
        {"file": f"{stem}_s000.png", "source": stem, "source_digest": digests_of(train)[stem]} for stem in train.stems
    ]
    (synthetic.path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"file": "cut')
    assert read_info(synthetic.path).learned == json.loads(json.dumps(info.learned))
    refuse_unfit([learned_by_synthetic(synthetic, train)], [test])
    for part, stem in ((train, "slice_0001"), (old, "slice_0002")):
        one = folder(tmp_path / f"test-{stem}", [("own", part.image(stem), test.mask("slice_0000"))])
        with pytest.raises(InputError, match="such as 'own' were used to make"):
            refuse_unfit([learned_by_synthetic(synthetic, train)], [one])
    nameless = [{key: value for key, value in row.items() if key != "source"} for row in rows]  # damaged lines
    (synthetic.path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in nameless))
    assert set(digests_of(train).values()) <= set(learned_by_synthetic(synthetic, train).slices.values())


def test_slices_of_one_grey_value_agree_by_chance(tmp_path):
    blank = ("blank", np.zeros((32, 64), np.uint8), np.zeros((32, 64), np.uint8))
    train = folder(tmp_path / "train", [*blobs(2, 32, 64, seed=1), blank])
    refuse_unfit([learned_from_folder(train)], [folder(tmp_path / "test", [*blobs(2, 32, 64, seed=2), blank])])


def test_eight_bit_slices_and_converted_ones_are_different(tmp_path):
    plain = folder(tmp_path / "plain", blobs(2, 32, 64, seed=1))
    converted = folder(tmp_path / "converted", blobs(2, 32, 64, seed=2), replace(INFO, intensity_window=(0.0, 255.0)))
    for a, b in ((plain, converted), (converted, plain)):
        with pytest.raises(InputError, match="8-bit grey values as they came"):
            refuse_unfit([learned_from_folder(a)], [b])


def test_a_root_needs_only_the_parts_that_are_asked_for(data_folder):
    shutil.rmtree(data_folder / "test")
    assert data_root(data_folder, ("train", "val")) == data_folder
    with pytest.raises(InputError, match="no pair folder test/, expected train/, val/ and test/"):
        data_root(data_folder)
    shutil.rmtree(data_folder / "val")
    assert data_root(data_folder, ("train",)) == data_folder
    with pytest.raises(InputError, match="no pair folder val/, expected train/ and val/ with"):
        data_root(data_folder, ("train", "val"))


def test_prepared_slices_keep_their_digest(tmp_path):
    from em_source import Source

    source, rng = Source(tmp_path), np.random.default_rng(0)
    pixels = rng.integers(0, 40000, (5, 16, 16)).astype(np.uint16)
    for i in range(5):
        source.add(f"s_{i}.tif", pixels[i], rng.integers(0, 2, (16, 16)).astype(np.uint8))
    parts = source.prepare("--val", "0.2", "--test", "0.2", "--gap", "0", "--size", "8x8")
    first = parts["train"]
    assert first.info.digests["s_0_y0008_x0000"] == slice_digest(pixels[0][8:, :8]) and len(first.info.digests) == 12
    assert Image.open(first.image_files["s_0_y0008_x0000"]).size == (8, 8)
