"""Helpers of the tests of `prepare` and `check`: files of slices and masks as users of a microscope have."""

import argparse
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natural2nanoscale.data.check import open_root
from natural2nanoscale.errors import InputError
from natural2nanoscale.verbs import prepare

THIRDS = ("--val", "0.2", "--test", "0.2", "--gap", "0")  # of five slices: three, one and one


def run_verb(verb, *arguments) -> None:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    verb.run(parser.parse_args([str(argument) for argument in arguments]))


class Source:
    """Files of slices and masks to prepare, and the data root they become."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.out = folder / "data"

    def add(self, name: str, image: np.ndarray, mask: np.ndarray) -> None:
        for kind, pixels in (("images", image), ("masks", mask)):
            (self.folder / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(self.folder / kind / name)

    def prepare(self, *arguments, images="images", masks="masks"):
        places = ("--images", self.folder / images, "--masks", self.folder / masks, "--out", self.out)
        run_verb(prepare, *places, *arguments)
        return open_root(self.out)

    def refuses(self, message: str, *arguments, **places) -> str:
        """The error's text; nothing may have been written, not even a temporary folder."""
        before = sorted(self.folder.rglob("*"))
        with pytest.raises(InputError, match=message) as caught:
            self.prepare(*arguments, **places)
        assert sorted(self.folder.rglob("*")) == before
        assert "\n" not in str(caught.value)
        return str(caught.value)


def stack(count: int, height: int, width: int, classes: int = 3, seed: int = 0):
    """Images (N,H,W) uint8 and masks (N,H,W) uint8 in which every class occurs on every page."""
    rng = np.random.default_rng(seed)
    masks = rng.permuted(np.resize(np.arange(classes), (count, height * width)), axis=1)
    images = rng.integers(0, 256, (count, height, width))
    return images.astype(np.uint8), masks.reshape(count, height, width).astype(np.uint8)


def fill(source: Source, count: int = 5, shape: tuple[int, int] = (12, 16), classes: int = 3, suffix: str = "png"):
    images, masks = stack(count, *shape, classes)
    for i in range(count):
        source.add(f"cell_{i}.{suffix}", images[i], masks[i])
    return images, masks


def write_png(path: Path, rows: np.ndarray, bits: int, width: int) -> None:
    """Grey PNG of 1, 2 or 4 bits from packed rows; Pillow itself writes none of 2 and 4."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
