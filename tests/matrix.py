"""TIFF files of every type, byte order, codec and layout, by several writers, read and compared with what was written.

`python tests/matrix.py` writes and reads all of them in under a minute and prints the counts; the tests take 80.
libtiff's tools (libtiff-tools), GDAL (gdal-bin) and OpenCV (opencv-python-headless) write where they are installed.
"""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from natural2nanoscale.data.readers.base import ReadOptions
from natural2nanoscale.data.readers.opening import open_source
from natural2nanoscale.errors import InputError

TYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
LOSSLESS = ("none", "lzw", "zlib", "packbits", "zstd", "lzma")
HEIGHT, WIDTH = 37, 53


@dataclass(frozen=True)
class Case:
    """One file: who writes it, how, and the slices (N,H,W) or (N,H,W,3) that are in it, to a tolerance if lossy."""

    writer: str
    name: str
    write: Callable[[Path], None]
    truth: np.ndarray
    tolerance: float = 0.0


def pixels(kind: str, count: int = 1, colour: bool = False, seed: int = 0) -> np.ndarray:
    """Smooth slices with noise over the whole range of a type, no two alike: (count,H,W) or (count,H,W,3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grey = np.stack(
        [np.sin(x / 9 + i) + y / 20 + rng.normal(0, 0.05, x.shape) for i in range(count * (3 if colour else 1))]
    )
    grey = (grey - grey.min()) / np.ptp(grey)
    if colour:
        grey = np.moveaxis(grey.reshape(count, 3, HEIGHT, WIDTH), 1, -1)
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        return ((grey - 0.5) * 1000).astype(dtype)
    limits = np.iinfo(dtype)
    return (limits.min + grey * (float(limits.max) - float(limits.min)) * 0.999).astype(dtype)


def by_tifffile() -> Iterator[Case]:
    def case(name: str, data: np.ndarray, tolerance: float = 0.0, stored: np.ndarray | None = None, **how) -> Case:
        truth = data if stored is None else stored
        return Case("tifffile", name, lambda path: tifffile.imwrite(path, data, **how), truth, tolerance)

    layouts = {
        "strips": {"rowsperstrip": 7}, "tiles": {"tile": (16, 32)}, "predictor": {"rowsperstrip": 7, "predictor": True},
        "predicted tiles": {"tile": (16, 32), "predictor": True},
    }  # fmt: skip
    for kind, order, codec, layout in itertools.product(TYPES, "<>", LOSSLESS, layouts):
        if "predict" in layout and codec in ("none", "packbits"):
            continue
        count = 1 + len(codec) % 3
        how = layouts[layout] | {"byteorder": order, "photometric": "minisblack", "bigtiff": codec == "zstd"}
        how |= {} if codec == "none" else {"compression": codec}
        yield case(f"{kind}{order} {codec} {layout}", pixels(kind, count), metadata=None, **how)
    for kind, order in itertools.product(TYPES, "<>"):
        for name, metadata in (("shaped", {}), ("bare", None)):
            yield case(f"{kind}{order} {name} big", pixels(kind, 4), byteorder=order, bigtiff=True, metadata=metadata,
                       photometric="minisblack")  # fmt: skip
        if kind not in ("u8", "i8", "f2"):  # not in OME's schema
            yield case(f"{kind}{order} ome", pixels(kind, 3), byteorder=order, ome=True, photometric="minisblack",
                   metadata={"axes": "ZYX"})  # fmt: skip
        yield case(f"{kind}{order} volume", pixels(kind, 4), byteorder=order, volumetric=True, tile=(16, 16),
                   photometric="minisblack", metadata=None)  # fmt: skip
    planes = ("contig", "separate")
    for order, planar, codec, tiled in itertools.product("<>", planes, ("none", "lzw", "zstd"), (0, 1)):
        data = pixels("u1", 1, colour=True)[0]
        written = data if planar == "contig" else np.moveaxis(data, -1, 0)
        how = {"tile": (16, 16)} if tiled else {}
        how |= {} if codec == "none" else {"compression": codec, "predictor": True}
        yield case(f"rgb{order} {planar} {codec} {tiled}", written, stored=data[None], byteorder=order,
                   photometric="rgb", planarconfig=planar, metadata=None, **how)  # fmt: skip
    for order, kind in itertools.product("<>", ("u1", "u2")):
        if kind + order != "u2>":  # which tifffile 2026.3 writes with its bytes swapped, as OpenCV says too
            yield case(f"{kind}{order} jpeg2000", pixels(kind), byteorder=order, compression="jpeg2000", metadata=None,
                       photometric="minisblack")  # fmt: skip
        yield case(f"{kind}{order} white", pixels(kind), byteorder=order, photometric="miniswhite", metadata=None)
    for order, kind in itertools.product("<>", ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8")):
        yield case(f"{kind}{order} lerc", pixels(kind), byteorder=order, compression="lerc", metadata=None,
                   photometric="minisblack")  # fmt: skip
    for quality in (75, 95):
        yield case(f"jpeg {quality}", pixels("u1"), 40.0, compression="jpeg", compressionargs={"level": quality},
                   metadata=None, photometric="minisblack")  # fmt: skip
        yield case(f"jpeg rgb {quality}", pixels("u1", 1, True)[0], 60.0, pixels("u1", 1, True), compression="jpeg",
                   compressionargs={"level": quality}, metadata=None, photometric="rgb")  # fmt: skip
    for kind, order in itertools.product(("u1", "u2", "f4"), "<>"):
        yield case(f"{kind}{order} imagej", pixels(kind, 5), byteorder=order, imagej=True, metadata={"axes": "ZYX"})
    for order in "<>":
        data = pixels("u1", 2) > 127
        yield case(f"bits {order}", data, stored=data.astype("u1"), byteorder=order, photometric="minisblack",
                   metadata=None)  # fmt: skip


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip()[-200:])


def by_libtiff() -> Iterator[Case]:
    """libtiff's tiffcp writes files of its own from a plain one."""
    if not shutil.which("tiffcp"):
        return

    def case(name: str, data: np.ndarray, *flags: str, tolerance: float = 0.0) -> Case:
        def write(path: Path) -> None:
            plain = path.with_suffix(".plain.tif")
            rgb = data.ndim == 4
            tifffile.imwrite(plain, data, photometric="rgb" if rgb else "minisblack", metadata=None)
            run("tiffcp", *flags, plain, path)
            plain.unlink()

        truth = data.astype("u1") if data.dtype == bool else data
        return Case("libtiff", f"{name} {' '.join(flags)}", write, truth, tolerance)

    kinds, codecs = ("u1", "u2", "i2", "u4", "i4", "f4", "f8"), ("none", "lzw:2", "zip:2", "packbits", "zstd", "lzma")
    for kind, order, codec, layout in itertools.product(
        kinds, ("-B", "-L"), codecs,
        (("-s", "-r", "5"), ("-t", "-w", "32", "-l", "16")),
    ):  # fmt: skip
        if ":2" in codec and kind == "f8":
            codec = codec.replace(":2", "")
        yield case(kind, pixels(kind, 1 + len(codec) % 2), order, "-c", codec, *layout)
    for order, planar, codec in itertools.product(("-B", "-L"), ("contig", "separate"), ("none", "lzw", "zip")):
        yield case("rgb", pixels("u1", 1, True), order, "-c", codec, "-p", planar)
    for order, codec in itertools.product(("-B", "-L"), ("g3", "g4", "none", "packbits", "lzw")):
        yield case("bit", pixels("u1", 2) > 127, order, "-c", codec)
        yield case("bit f", pixels("u1", 2) > 127, order, "-c", codec, "-f", "lsb2msb")
    for order in ("-B", "-L"):
        yield case("jpeg", pixels("u1"), order, "-c", "jpeg:90", tolerance=40.0)
        yield case("big", pixels("u2", 3), order, "-8")


def by_gdal() -> Iterator[Case]:
    """GDAL writes from a raw file with an ENVI header, so that no other TIFF writer is asked."""
    if not shutil.which("gdal_translate"):
        return
    envi = {"u1": 1, "i2": 2, "i4": 3, "f4": 4, "f8": 5, "u2": 12, "u4": 13}

    def case(kind: str, options: tuple[str, ...], tolerance: float = 0.0, bits: int = 0) -> Case:
        data = pixels(kind) >> (8 * np.dtype(kind).itemsize - bits) if bits else pixels(kind)

        def write(path: Path) -> None:
            raw = path.with_suffix(".bin")
            data.tofile(raw)
            raw.with_suffix(".hdr").write_text(
                f"ENVI\nsamples = {WIDTH}\nlines = {HEIGHT}\nbands = 1\nheader offset = 0\ndata type = {envi[kind]}\n"
                "interleave = bsq\nbyte order = 0\n"
            )
            flags = [word for option in options for word in ("-co", option)]
            run("gdal_translate", "-q", "-of", "GTiff", *flags, raw, path)
            raw.unlink(), raw.with_suffix(".hdr").unlink()

        return Case("GDAL", f"{kind} {' '.join(options)}", write, data, tolerance)

    for kind, order, codec, tiled in itertools.product(
        envi, ("BIG", "LITTLE"), ("NONE", "LZW", "DEFLATE", "PACKBITS", "ZSTD", "LZMA"), ("YES", "NO")
    ):
        predictor = (
            () if codec not in ("LZW", "DEFLATE", "ZSTD") else ("PREDICTOR=3" if kind[0] == "f" else "PREDICTOR=2",)
        )
        size = ("BLOCKXSIZE=16", "BLOCKYSIZE=16") if tiled == "YES" else ("BLOCKYSIZE=5",)
        yield case(kind, (f"ENDIANNESS={order}", f"COMPRESS={codec}", f"TILED={tiled}", *size, *predictor))
    for kind, order, codec in itertools.product(envi, ("BIG", "LITTLE"), ("LERC", "LERC_ZSTD", "LERC_DEFLATE")):
        yield case(kind, (f"ENDIANNESS={order}", f"COMPRESS={codec}", "MAX_Z_ERROR=0"))
    for order, codec, (kind, bits) in itertools.product(
        ("BIG", "LITTLE"), ("NONE", "LZW", "DEFLATE"), (("u1", 1), ("u1", 2), ("u1", 4), ("u2", 12))
    ):
        yield case(kind, (f"ENDIANNESS={order}", f"COMPRESS={codec}", f"NBITS={bits}"), bits=bits)
    yield case("u1", ("COMPRESS=JPEG",), 40.0)


def by_opencv() -> Iterator[Case]:
    try:
        import cv2
    except ImportError:
        return
    for kind, codec in itertools.product(("u1", "i1", "u2", "i2", "i4", "f4", "f8"), (1, 5, 8, 32773, 32946)):
        data = pixels(kind)
        how = [cv2.IMWRITE_TIFF_COMPRESSION, codec]
        yield Case("OpenCV", f"{kind} {codec}", lambda p, d=data, h=how: _cv(cv2.imwrite(str(p), d[0], h)), data)
    for codec in (1, 5, 8):
        data = pixels("u1", 1, True)
        how = [cv2.IMWRITE_TIFF_COMPRESSION, codec]
        yield Case(
            "OpenCV", f"rgb {codec}", lambda p, d=data, h=how: _cv(cv2.imwrite(str(p), d[0][..., ::-1], h)), data
        )
        stack = pixels("u2", 3)
        yield Case(
            "OpenCV", f"stack {codec}", lambda p, d=stack, h=how: _cv(cv2.imwritemulti(str(p), list(d), h)), stack
        )


def _cv(done: bool) -> None:
    if not done:
        raise OSError("OpenCV could not write this")


def imagej_bytes(data: np.ndarray, order: str, extra: str = "", white: bool = False, pages: bool = False) -> bytes:
    """ImageJ's own layout: header, IFD, description, planes one after another; one IFD, or one per plane."""
    count, height, width = data.shape
    size = data.dtype.itemsize
    text = f"ImageJ=1.54f\nimages={count}\nslices={count}\n{extra}loop=false\n".encode() + b"\0"
    entries = 11
    ifd = 2 + entries * 12 + 4
    number = count if pages else 1
    offset = 8 + number * ifd + len(text) + len(text) % 2
    out = (b"MM" if order == ">" else b"II") + struct.pack(order + "HI", 42, 8)
    for page in range(number):
        tags = [
            (254, 4, 1, 0), (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8 * size), (259, 3, 1, 1),
            (262, 3, 1, 0 if white else 1), (270, 2, len(text), 8 + number * ifd),
            (273, 4, 1, offset + page * height * width * size), (277, 3, 1, 1), (278, 4, 1, height),
            (279, 4, 1, height * width * size),
        ]  # fmt: skip
        if data.dtype.kind == "f":
            tags[8] = (339, 3, 1, 3)
            tags = sorted(tags)
        out += struct.pack(order + "H", len(tags))
        for tag, kind, length, value in tags:
            packed = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
            out += struct.pack(order + "HHI", tag, kind, length) + packed
        out += struct.pack(order + "I", 8 + (page + 1) * ifd if page + 1 < number else 0)
    out += text + b"\0" * (len(text) % 2)
    assert len(out) == offset
    return out + data.astype(data.dtype.newbyteorder(order)).tobytes()


def by_hand() -> Iterator[Case]:
    for kind, order, count, pages in itertools.product(("u1", "u2", "f4"), "<>", (1, 2, 5), (False, True)):
        content = pixels(kind, count)

        def write(path: Path, content: np.ndarray = content, order: str = order, pages: bool = pages) -> None:
            path.write_bytes(imagej_bytes(content, order, pages=pages))

        yield Case("ImageJ's layout", f"{kind}{order} {count} {pages}", write, content)


WRITERS = {"tifffile": by_tifffile, "libtiff": by_libtiff, "GDAL": by_gdal, "OpenCV": by_opencv, "by hand": by_hand}


def some(writer: str, count: int) -> list[Case]:
    """`count` cases of a writer, evenly spread over all that it has; none where it is not installed."""
    found = list(WRITERS[writer]())
    return [found[round(i * (len(found) - 1) / (count - 1))] for i in range(min(count, len(found)))]


def read_all(path: Path) -> np.ndarray:
    source = open_source(path, ReadOptions())
    try:
        return np.stack([source.read(i) for i in range(source.count)])
    finally:
        source.close()


def judge(case: Case, path: Path) -> tuple[str, str]:
    """("right" | "refused" | "wrong" | "unwritten", why) of one file."""
    path.unlink(missing_ok=True)
    try:
        case.write(path)
    except Exception as error:  # every writer has types or codecs that it does not know
        return "unwritten", f"{type(error).__name__}: {error}"
    try:
        found = read_all(path)
    except InputError as error:
        return "refused", str(error)
    if found.shape != case.truth.shape or found.dtype != case.truth.dtype:
        return "wrong", f"{found.shape} {found.dtype}, expected {case.truth.shape} {case.truth.dtype}"
    far = np.abs(found.astype("f8") - case.truth.astype("f8")).max()
    same = np.array_equal(found, case.truth) if not case.tolerance else far <= case.tolerance
    return ("right", "") if same else ("wrong", f"differs by up to {far:g}")


def main() -> None:
    counts: dict[str, Counter] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(itertools.chain(*(writer() for writer in WRITERS.values()))):
            verdict, why = judge(case, Path(folder) / f"case_{number}.tif")
            counts.setdefault(case.writer, Counter())[verdict] += 1
            if verdict != "right":
                print(f"{verdict}: {case.writer} {case.name}: {why}")
            (Path(folder) / f"case_{number}.tif").unlink(missing_ok=True)
    for writer, found in counts.items():
        print(f"{writer}: " + ", ".join(f"{n} {verdict}" for verdict, n in sorted(found.items())))
    total = sum(counts.values(), Counter())
    read = total["right"] + total["refused"] + total["wrong"]
    others = read - sum(n for verdict, n in counts["tifffile"].items() if verdict != "unwritten")
    print(
        f"{read} files, {others} of them by other writers than tifffile; right {total['right']}, "
        f"refused {total['refused']}"
    )
    print(f"wrong {total['wrong']}")
    sys.exit(bool(total["wrong"]))


if __name__ == "__main__":
    main()
