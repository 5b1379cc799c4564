"""Small stand-ins that the tests make themselves: pair folders and a backbone of Stable Diffusion's shape."""

import runpy
import socket
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import DatasetInfo, write_pairs

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes over ten seconds; `pytest -m slow` runs these, `pytest` the others")
    config.addinivalue_line("markers", "cuda: needs a CUDA card")
    if not config.option.markexpr:
        config.option.markexpr = "not slow"


@pytest.fixture(autouse=True, scope="session")
def nobody_outside():
    """No test reaches the network: sockets connect to this machine alone, and names are not looked up elsewhere."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo
    here = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "", None)

    def refuse(host: object) -> None:
        if host not in (*here, socket.gethostname()):
            raise OSError(f"tests reach nobody but this machine, not {host}")

    def local_connect(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:
            refuse(address[0])
        return connect(self, address)

    def local_lookup(host: object, *arguments: object, **named: object) -> list:
        refuse(host)
        return lookup(host, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_connect)
        patch.setattr(socket, "getaddrinfo", local_lookup)
        yield


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA card, and torch sees none")


def blobs(count: int, height: int, width: int, classes: int = 3, seed: int = 0):
    """`count` (stem, image, mask) triples: bands of classes with a grey level and noise each."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    for i in range(count):
        wave = 0.2 * height * np.sin(x / width * 6 + i / 3 + rng.normal(0, 0.2))
        mask = np.clip((y + wave) * classes // height, 0, classes - 1).astype(np.uint8)
        image = 220 - mask * (180 // classes) + rng.normal(0, 6, mask.shape)
        yield f"slice_{i:04d}", image.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    """Backbones compute in float32 unless a test asks for bfloat16, which is slow for networks as small as ours."""
    monkeypatch.setattr("natural2nanoscale.device.native_bfloat16", lambda device: device.type == "cuda")


@pytest.fixture
def data_folder(tmp_path):
    """A data root: 4 training, 2 validation, 2 test slices of 64x32, three classes."""
    root = tmp_path / "data"
    info = DatasetInfo("blobs", "prepared", Classes.named("background", "cytoplasm", "nucleus"))
    for seed, (part, count) in enumerate((("train", 4), ("val", 2), ("test", 2))):
        write_pairs(root / part, info, blobs(count, 32, 64, seed=seed))
    return root


def save_tiny_backbone(folder: Path) -> Path:
    from backbones import TINY, save_backbone

    hint = {"conditioning_embedding_out_channels": [4, 8]}
    return save_backbone(folder, TINY, learning_rate=1e-3, crop=[32, 32], **hint)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory):
    """Folder of a backbone with Stable Diffusion's parts, small and random."""
    return save_tiny_backbone(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory):
    """Folder of a backbone with Stable Diffusion 1.5's very structure, in small widths."""
    from backbones import SMALL, save_backbone

    return save_backbone(tmp_path_factory.mktemp("small"), SMALL)


@pytest.fixture
def front_door(monkeypatch, capsys):
    """Run a function of a front door in this process under given arguments; returns stdout and stderr."""

    def run(start, *arguments: object, expect: int = 0) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", [*map(str, arguments)])
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        capsys.readouterr()
        code = 0
        try:
            start()
        except SystemExit as stop:
            code = stop.code
        printed = capsys.readouterr()
        assert code == expect, printed.out + printed.err
        return SimpleNamespace(stdout=printed.out, stderr=printed.err)

    return run


@pytest.fixture
def script(front_door):
    """`python NAME ARGUMENTS`, in this process."""

    def run(name: str, *arguments: object, expect: int = 0) -> SimpleNamespace:
        start = partial(runpy.run_path, str(ROOT / name), run_name="__main__")
        return front_door(start, name, *arguments, expect=expect)

    return run


@pytest.fixture
def verb(front_door):
    """`python -m natural2nanoscale VERB ARGUMENTS`, in this process."""

    def run(*arguments: object, expect: int = 0) -> SimpleNamespace:
        start = partial(runpy.run_module, "natural2nanoscale", run_name="__main__", alter_sys=False)
        return front_door(start, "natural2nanoscale", *arguments, expect=expect)

    return run
