"""`export`: read by nnU-Net and onnxruntime themselves where they are installed, and by the documented layout."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import blobs
from PIL import Image
from test_segment import make_run

from natural2nanoscale.data.folders import open_pairs, read_info, write_pairs
from natural2nanoscale.segmentation.inference import shares

SHAPES = [(1, 1, 1), (1, 2, 3), (1, 3, 50), (2, 40, 56), (1, 41, 57), (1, 200, 133)]


def add_synthetic(root):
    items = [(f"{stem}_s0", image, mask) for stem, image, mask in blobs(3, 32, 64, seed=9)]
    return write_pairs(root / "synthetic", read_info(root / "train"), items)


def unlabel(root):
    """Rows of a training mask that carry no label; returns the mask."""
    file = root / "train" / "masks" / "slice_0001.png"
    pixels = mask_of(file).copy()
    pixels[:4] = 255
    Image.fromarray(pixels).save(file)
    return pixels


def mask_of(path):
    return np.asarray(Image.open(path))


def test_an_nnunet_dataset(verb, data_folder, tmp_path):
    add_synthetic(data_folder)
    pixels = unlabel(data_folder)
    said = verb("export", "nnunet", "--data", data_folder, "--out", tmp_path / "out").stdout
    assert "4 train, 2 val, 2 test, 3 synthetic slices" in said and "nnUNetv2_train 501 2d 0" in said
    raw = tmp_path / "out" / "nnUNet_raw" / "Dataset501_blobs"
    described = json.loads((raw / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "cytoplasm": 1, "nucleus": 2, "ignore": 3}
    assert described["channel_names"] == {"0": "EM"} and described["numTraining"] == 9 and described["format"] == 1
    cases = sorted(file.name.removesuffix("_0000.png") for file in (raw / "imagesTr").iterdir())
    assert cases == sorted(file.stem for file in (raw / "labelsTr").iterdir()) and len(cases) == 9
    splits = json.loads((raw.parents[1] / "nnUNet_preprocessed" / raw.name / "splits_final.json").read_text())
    (fold,) = splits
    assert sorted(fold["train"] + fold["val"]) == cases and fold["val"] == ["val_slice_0000", "val_slice_0001"]
    assert np.array_equal(mask_of(raw / "labelsTr" / "train_slice_0001.png"), np.where(pixels == 255, 3, pixels))
    test = open_pairs(data_folder / "test")
    assert np.array_equal(mask_of(raw / "imagesTs" / "test_slice_0001_0000.png"), test.image("slice_0001"))
    assert np.array_equal(mask_of(raw / "labelsTs" / "test_slice_0001.png"), test.mask("slice_0001"))
    assert "already exists" in verb("export", "nnunet", "--data", data_folder, "--out", raw, expect=2).stderr


@pytest.mark.slow
def test_nnunet_finds_the_dataset_whole(verb, data_folder, tmp_path):
    if "NNUNET" not in os.environ:
        pytest.skip("NNUNET names no folder that nnunetv2 is installed in; in this environment it would replace torch")
    add_synthetic(data_folder)
    unlabel(data_folder)
    verb("export", "nnunet", "--data", data_folder, "--out", tmp_path / "out")
    places = {f"nnUNet_{one}": str(tmp_path / "out" / f"nnUNet_{one}") for one in ("raw", "preprocessed", "results")}
    check = (
        "from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity as verify\n"
        "if __name__ == '__main__':\n"
        f"    verify({str(tmp_path / 'out' / 'nnUNet_raw' / 'Dataset501_blobs')!r}, 1)\n"
    )
    (tmp_path / "verify.py").write_text(check)
    places["PYTHONPATH"] = os.environ["NNUNET"]
    call = [sys.executable, tmp_path / "verify.py"]
    result = subprocess.run(call, env=os.environ | places, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "verify_dataset_integrity Done" in result.stdout and "Error" not in result.stdout


def test_plain_folders(verb, data_folder, tmp_path):
    synthetic = add_synthetic(data_folder)
    verb("export", "folders", "--data", data_folder, "--out", tmp_path / "out")
    files = {}
    for part, count in (("train", 7), ("val", 2), ("test", 2)):
        files[part] = sorted(file.name for file in (tmp_path / "out" / part / "images").iterdir())
        assert len(files[part]) == count
        assert files[part] == sorted(file.name for file in (tmp_path / "out" / part / "masks").iterdir())
    stem = synthetic.stems[0]
    found = mask_of(tmp_path / "out" / "train" / "masks" / f"synthetic_{stem}.png")
    assert np.array_equal(found, synthetic.mask(stem))
    verb("export", "folders", "--data", data_folder, "--out", tmp_path / "real", "--real-only")
    assert len(list((tmp_path / "real" / "train" / "images").iterdir())) == 4


def test_leaks_are_not_exported(verb, data_folder, tmp_path):
    file = data_folder / "test" / "images" / "slice_0000.png"
    train = open_pairs(data_folder / "train")
    write_pairs(data_folder / "synthetic", train.info, [("a", mask_of(file), train.mask("slice_0001"))])
    test, dataset = open_pairs(data_folder / "test"), data_folder / "train" / "dataset.json"
    described = json.loads(dataset.read_text())
    described["digests"]["slice_0000"] = test.info.digests["slice_0000"]
    dataset.write_text(json.dumps(described))
    refused = verb("export", "folders", "--data", data_folder, "--out", tmp_path / "out", expect=2).stderr
    assert "'slice_0000'" in refused and "worthless" in refused and not (tmp_path / "out").exists()


def test_onnx_says_what_torch_says(verb, tmp_path):
    pytest.importorskip("onnx", reason="ONNX is in the extra `full`")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX is in the extra `full`")
    models = make_run(tmp_path / "run", (10.0, 900.0))
    said = verb("export", "onnx", "--run", tmp_path / "run", "--out", tmp_path / "unet.onnx").stdout
    assert "2 U-Net(s)" in said and "grey values 10 to 900" in said
    session = runtime.InferenceSession(str(tmp_path / "unet.onnx"))
    described = json.loads(session.get_modelmeta().custom_metadata_map["natural2nanoscale"])
    assert described["format"] == 1 and described["intensity_window"] == [10, 900]
    for shape in SHAPES:
        torch.manual_seed(0)
        grey = torch.randint(0, 256, shape, dtype=torch.uint8)
        with torch.no_grad():
            expected = shares(models, grey).numpy()
        found = session.run(None, {"grey": grey[:, None].float().numpy()})[0]
        assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-4
    assert (
        "already exists"
        in verb("export", "onnx", "--run", tmp_path / "run", "--out", tmp_path / "unet.onnx", expect=2).stderr
    )
