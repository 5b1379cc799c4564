"""No code comes from data: no pickle but in the one converter, no network but for the hub, no telemetry."""

import ast
import os
import pickle
import shutil
import socket
import zipfile
from pathlib import Path

import pytest
import torch

from natural2nanoscale.diffusion.convert import PICKLES

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "natural2nanoscale"
FILES = [*PACKAGE.rglob("*.py"), *(ROOT / f"{name}.py" for name in ("train_controlnet", "generate", "train_unet"))]
CONVERTER = PACKAGE / "diffusion" / "convert.py"
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "importlib.util"}
CALLS = {"eval", "exec", "compile", "__import__"}  # as plain names: torch.compile is an attribute
ATTRIBUTES = {("torch", "load"), ("os", "system"), ("os", "popen")}
NETWORK = {"socket", "requests", "httpx", "aiohttp", "urllib.request", "http.client", "huggingface_hub"}
HUB = PACKAGE / "diffusion" / "hub.py"


def found_in(file: Path) -> list[str]:
    """What of the above a file uses."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in MODULES | NETWORK]
        if isinstance(node, ast.ImportFrom) and node.module in MODULES | NETWORK:
            found.append(node.module)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
            found.append(node.func.id)
        if isinstance(node, ast.Attribute) and (getattr(node.value, "id", None), node.attr) in ATTRIBUTES:
            found.append(f"{node.value.id}.{node.attr}")
        if isinstance(node, ast.keyword):
            value = getattr(node.value, "value", None)
            if node.arg in ("trust_remote_code", "allow_pickle") and value is not False:
                found.append(node.arg)
            if node.arg == "shell" and value:
                found.append("shell")
            if node.arg in ("use_safetensors", "weights_only") and value is not True:
                found.append(f"{node.arg}={value}")
    return found


def test_the_package_runs_nothing_that_it_reads():
    for file in FILES:
        allowed = {CONVERTER: {"pickle", "torch.load"}, HUB: {"huggingface_hub", "urllib.request"}}.get(file, set())
        assert set(found_in(file)) <= allowed, file
    assert "torch.load" in found_in(CONVERTER)
    text = CONVERTER.read_text()
    assert text.count("torch.load(") == 1 and "weights_only=True" in text


class Malicious:
    """A pickle that would leave a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("suffix", [*PICKLES, ".bin", ".safetensors", ".png", ".tif", ".json"])
def test_a_malicious_pickle_never_runs(suffix, verb, script, data_folder, tmp_path):
    mark, file = tmp_path / "mark", tmp_path / f"evil{suffix}"
    for archive in (False, True):
        if archive:
            torch.save({"control_model.x": Malicious(mark)}, file)
        else:
            file.write_bytes(pickle.dumps(Malicious(mark)))
        assert "error: " in verb("convert", file, "--out", tmp_path / "out", expect=2).stderr
        train = ["train_controlnet.py", "--data", data_folder, "--out", tmp_path / "run", "--max-steps", 1]
        assert "error: " in script(*train, "--backbone", file, expect=2).stderr
        shutil.copy(file, data_folder / "train" / "images" / f"evil{suffix}")
        verb("check", data_folder, expect=2 if suffix in (".png", ".tif") else 0)
        (data_folder / "train" / "images" / f"evil{suffix}").unlink()
        shutil.copy(file, data_folder / "train" / "dataset.json.old")
    assert not mark.exists() and not (tmp_path / "out").exists() and not (tmp_path / "run").exists()


def test_a_damaged_archive_is_one_sentence(verb, tmp_path):
    file = tmp_path / "a.pth"
    torch.save({"control_model.x": torch.ones(3)}, file)
    good = file.read_bytes()
    for position in range(0, len(good), len(good) // 12):
        damaged = bytearray(good)
        damaged[position] ^= 0x55
        file.write_bytes(bytes(damaged))
        error = verb("convert", file, "--out", tmp_path / "out", expect=2).stderr
        assert error.startswith("error: ") and error.count("\n") == 1, position
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"(" * 10_000)
    assert "cannot be read" in verb("convert", file, "--out", tmp_path / "out", expect=2).stderr


def test_the_suite_reaches_nobody_but_itself():
    with pytest.raises(OSError, match="tests reach nobody"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="tests reach nobody"):
        socket.getaddrinfo("huggingface.co", 443)


def test_no_telemetry():
    import natural2nanoscale  # noqa: F401

    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    from huggingface_hub import constants

    assert constants.HF_HUB_DISABLE_TELEMETRY
