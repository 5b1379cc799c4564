"""Files of the field as slices: what is read is what was written, or it is refused; labels are never touched."""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import matrix
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from em_source import Source, stack
from PIL import Image

from natural2nanoscale.data.prepare.sources import Reader
from natural2nanoscale.data.readers.base import ReadOptions
from natural2nanoscale.data.readers.opening import open_source
from natural2nanoscale.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def read_all(path, **options):
    source = open_source(Path(path), ReadOptions(**options))
    try:
        return np.stack([source.read(i) for i in range(source.count)]), source
    finally:
        source.close()


@pytest.mark.parametrize(
    ("writer", "count"), [("tifffile", 48), ("libtiff", 12), ("GDAL", 6), ("OpenCV", 6), ("by hand", 8)]
)
def test_matrix(writer, count, tmp_path):
    """80 files of the matrix; `python tests/matrix.py` has all."""
    cases = matrix.some(writer, count)
    if not cases:
        pytest.skip(
            f"{writer} is not installed: apt-get install libtiff-tools gdal-bin, pip install opencv-python-headless"
        )
    found = [(case.name, *matrix.judge(case, tmp_path / "case.tif")) for case in cases]
    assert not [entry for entry in found if entry[1] == "wrong"]
    assert sum(entry[1] == "right" for entry in found) >= 0.8 * len(cases)


def test_reduced_pages_are_no_slices(tmp_path):
    data = matrix.pixels("u2", 3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for page in data:
            tif.write(page, photometric="minisblack", metadata=None)
            tif.write(page[::2, ::2], photometric="minisblack", metadata=None, subfiletype=1)
    with tifffile.TiffWriter(tmp_path / "b.tif") as tif:
        for page in data:
            tif.write(page, photometric="minisblack", metadata=None, subifds=1)
            tif.write(page[::2, ::2], photometric="minisblack", metadata=None, subfiletype=1)
    with tifffile.TiffWriter(tmp_path / "c.ome.tif", ome=True) as tif:
        tif.write(data, photometric="minisblack", metadata={"axes": "ZYX"}, subifds=1)
        tif.write(data[:, ::2, ::2], photometric="minisblack", subfiletype=1)
    for name in ("a.tif", "b.tif", "c.ome.tif"):
        assert np.array_equal(read_all(tmp_path / name)[0], data), name
    with tifffile.TiffWriter(tmp_path / "d.tif") as tif:  # smaller pages that nothing explains
        tif.write(data[0], photometric="minisblack", metadata=None)
        tif.write(data[0, ::2, ::2], photometric="minisblack", metadata=None)
    with pytest.raises(InputError, match="pages of different kinds, 53x37 uint16 MINISBLACK and 27x19 uint16"):
        open_source(tmp_path / "d.tif", ReadOptions())


def test_slices_that_were_written_one_after_the_other(tmp_path):
    data = matrix.pixels("u2", 3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for page in data:
            tif.write(page, photometric="minisblack")
    for page in data:
        tifffile.imwrite(tmp_path / "b.tif", page, photometric="minisblack", append=True)
    for name in ("a.tif", "b.tif"):
        assert np.array_equal(read_all(tmp_path / name)[0], data)
    tifffile.imwrite(tmp_path / "b.tif", data[0, :9], photometric="minisblack", append=True)
    with pytest.raises(InputError, match="holds 4 images of shapes"):
        open_source(tmp_path / "b.tif", ReadOptions())


def test_pages_that_contradict_one_another_or_their_description(tmp_path):
    data = matrix.pixels("u1", 3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tif:
        for page, photometric in zip(data, ("minisblack", "minisblack", "miniswhite"), strict=True):
            tif.write(page, photometric=photometric, metadata=None)
    with pytest.raises(InputError, match="MINISBLACK and 53x37 uint8 MINISWHITE"):
        open_source(tmp_path / "a.tif", ReadOptions())
    tables = [np.full((3, 256), 256 * n, "u2") for n in (7, 7, 9)]
    with tifffile.TiffWriter(tmp_path / "b.tif") as tif:
        for page, table in zip(data, tables, strict=True):
            tif.write(page, photometric="palette", colormap=table, metadata=None)
    with pytest.raises(InputError, match="PALETTE"):
        open_source(tmp_path / "b.tif", ReadOptions())
    with tifffile.TiffWriter(tmp_path / "c.tif") as tif:
        for page in (*data, data[0]):
            said = "ImageJ=1.54f\nimages=3\nslices=3\n"
            tif.write(page, photometric="minisblack", metadata=None, description=said)
    with pytest.raises(InputError, match=r"announces the shape \(3, 37, 53\) but has 4 pages"):
        open_source(tmp_path / "c.tif", ReadOptions())


@pytest.mark.parametrize("kind", ["imagej", "ome", "shaped", "samples", "planar"])
def test_channels_are_chosen(kind, tmp_path):
    data = matrix.pixels("u2", 6).reshape(3, 2, matrix.HEIGHT, matrix.WIDTH)  # Z, C
    path = tmp_path / "a.tif"
    if kind in ("samples", "planar"):
        with tifffile.TiffWriter(path) as tif:
            for page in data:
                pixels = page if kind == "planar" else np.moveaxis(page, 0, -1)
                planar = "separate" if kind == "planar" else "contig"
                tif.write(pixels, planarconfig=planar, photometric="minisblack", metadata=None, extrasamples=[0])
    else:
        how = {"imagej": {"imagej": True}, "ome": {"ome": True}, "shaped": {}}[kind]
        tifffile.imwrite(path, data, photometric="minisblack", metadata={"axes": "ZCYX"}, **how)
    with pytest.raises(InputError, match=r"2 channels: choose one with `--channel 0` or `--channel 1`"):
        open_source(path, ReadOptions())
    for channel in (0, 1):
        assert np.array_equal(read_all(path, channel=channel)[0], data[:, channel])
    with pytest.raises(InputError, match="2 channels"):
        open_source(path, ReadOptions(channel=2))


def test_slices_along_the_last_axis(tmp_path):
    data = matrix.pixels("u2", 5)
    last = np.moveaxis(data, 0, -1)
    tifffile.imwrite(tmp_path / "said.tif", last, photometric="minisblack", metadata={"axes": "YXZ"})
    assert np.array_equal(read_all(tmp_path / "said.tif")[0], data)
    tifffile.imwrite(tmp_path / "z.tif", last, photometric="minisblack", metadata={"axes": "YXZ"}, compression="zlib")
    assert np.array_equal(read_all(tmp_path / "z.tif")[0], data)
    tifffile.imwrite(tmp_path / "bare.tif", last, photometric="minisblack", metadata=None)
    wrong, source = read_all(tmp_path / "bare.tif")
    assert wrong.shape[0] == matrix.HEIGHT and "`--axes YXZ`" in source.notes[-1]
    assert np.array_equal(read_all(tmp_path / "bare.tif", axes="YXZ")[0], data)
    np.save(tmp_path / "bare.npy", last)
    assert np.array_equal(read_all(tmp_path / "bare.npy", axes="YXZ")[0], data)


@pytest.mark.parametrize("compression", [None, "lzw"])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4", "bool"])
def test_display_tags_touch_no_label(tmp_path, kind, compression, capsys):
    labels = (matrix.pixels("u1")[0] > 128).astype(kind)
    tags = {"photometric": "miniswhite", "extratags": [(274, 3, 1, 6, True)], "compression": compression}
    tifffile.imwrite(tmp_path / "a.tif", labels, metadata=None, **tags)
    with Reader(ReadOptions(10**6)) as reader:
        page = reader.pages_of(tmp_path / "a.tif", "a")[0]
        assert np.array_equal(reader.mask(page).values, labels)
        grey = reader.image(page)[0]
    turned = {"u1": lambda v: 255 - v, "u2": lambda v: 65535 - v, "i2": np.invert, "f4": np.negative,
              "bool": lambda v: 255 * ~v}  # fmt: skip
    assert np.array_equal(grey, turned[kind](labels))
    said = capsys.readouterr().out
    assert "labels keep their stored values" in said and said.count("Orientation tag (6) is ignored") == 1


@pytest.mark.parametrize("mode", ["i1", "i2", "f4", "u2", "f2"])
def test_mrc(tmp_path, mode):
    data = matrix.pixels(mode, 3)
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(data)
        mrc.voxel_size = 42.0
    found, source = read_all(tmp_path / "a.mrc")
    assert np.array_equal(found, data) and found.dtype == data.dtype and source.pixel_size_nm == 4.2
    raw = bytearray((tmp_path / "a.mrc").read_bytes())
    (tmp_path / "short.mrc").write_bytes(raw[:-10])
    with pytest.raises(InputError, match="ends before its 3 slices"):
        open_source(tmp_path / "short.mrc", ReadOptions())
    raw[152:160] = struct.pack("<ii", 1146047817, 0)  # IMOD's stamp: bytes unsigned, rows from below
    (tmp_path / "b.mrc").write_bytes(raw)
    with pytest.raises(InputError, match="leave out --flip-y"):
        open_source(tmp_path / "b.mrc", ReadOptions(flip_y=True))
    turned, source = read_all(tmp_path / "a.mrc", flip_y=True)
    assert np.array_equal(turned, data[:, ::-1]) and "turned over by --flip-y" in source.notes[0]
    stored = data.view("u1") if mode == "i1" else data
    assert np.array_equal(read_all(tmp_path / "b.mrc")[0], stored[:, ::-1])
    raw[156] = 1  # bytes are signed: stored less 128
    (tmp_path / "c.mrc").write_bytes(raw)
    assert np.array_equal(read_all(tmp_path / "c.mrc")[0], (stored ^ np.uint8(128) if mode == "i1" else data)[:, ::-1])


def test_mrc_bytes_without_a_stamp(tmp_path):
    """They are signed by the standard; what the header says of their range tells whether a program took it so."""
    data = matrix.pixels("u1", 3)
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(data.view("i1"))
    found, source = read_all(tmp_path / "a.mrc")
    assert np.array_equal(found, data.view("i1")) and "taken as signed" in source.notes[-1]
    raw = bytearray((tmp_path / "a.mrc").read_bytes())
    raw[76:84] = struct.pack("<ff", 0, 255)
    (tmp_path / "a.mrc").write_bytes(raw)
    found, source = read_all(tmp_path / "a.mrc")
    assert np.array_equal(found, data) and found.dtype == np.uint8 and "signed" not in source.notes[-1]


@pytest.mark.parametrize(("place", "value"), [(208, b"\0" * 4), (212, b"\0" * 4), (212, b"\x44\x20\x20\x20")])
def test_mrc_without_its_marks(tmp_path, place, value, recwarn):
    data = matrix.pixels("i2", 2)
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(data)
    raw = bytearray((tmp_path / "a.mrc").read_bytes())
    raw[place : place + 4] = value
    (tmp_path / "a.mrc").write_bytes(raw)
    assert np.array_equal(read_all(tmp_path / "a.mrc")[0], data) and not len(recwarn)
    raw[8:12] = struct.pack("<i", -5)
    (tmp_path / "a.mrc").write_bytes(raw)
    with pytest.raises(InputError, match="its header says -5 slices"):
        open_source(tmp_path / "a.mrc", ReadOptions())


def test_big_endian_mrc(tmp_path):
    data = matrix.pixels("i2", 2)
    with mrcfile.new(tmp_path / "a.mrc") as mrc:
        mrc.set_data(data.astype(">i2"))
    found = read_all(tmp_path / "a.mrc")[0]
    assert np.array_equal(found, data) and found.dtype == np.int16


def test_hdf5_and_numpy(tmp_path):
    data, labels = matrix.pixels("f4", 4), matrix.pixels("u1", 4) // 100
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("volumes/raw", data=data, compression="gzip").attrs["resolution"] = [40.0, 4.0, 4.0]
        file["volumes/labels"] = labels
        file["note"] = "text"
    found, source = read_all(tmp_path / "a.h5:/volumes/raw")
    assert np.array_equal(found, data) and source.pixel_size_nm == 4.0
    with pytest.raises(InputError, match="a.h5:/volumes/labels`, `.*a.h5:/volumes/raw`"):
        open_source(tmp_path / "a.h5", ReadOptions())
    with pytest.raises(InputError, match="no array /volumes/row"):
        open_source(tmp_path / "a.h5:/volumes/row", ReadOptions())
    np.save(tmp_path / "a.npy", np.asfortranarray(data))
    np.savez(tmp_path / "a.npz", raw=data, labels=labels)
    assert np.array_equal(read_all(tmp_path / "a.npy")[0], data)
    assert np.array_equal(read_all(tmp_path / "a.npz:labels")[0], labels)
    np.save(tmp_path / "evil.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        open_source(tmp_path / "evil.npy", ReadOptions())


def test_hdf5_of_bigdataviewer_holds_16_bits_without_a_sign(tmp_path):
    data = matrix.pixels("u2", 4)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t00000/s00/0/cells"] = data.view("i2")
        file["s00/resolutions"] = file["s00/subdivisions"] = np.ones((1, 3))
    found, source = read_all(tmp_path / "a.h5")
    assert np.array_equal(found, data) and found.dtype == np.uint16
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["s00"].attrs["dataType"] = "int16"
    assert np.array_equal(read_all(tmp_path / "a.h5")[0], data.view("i2"))


def test_hdf5_dimensions_with_labels(tmp_path):
    data = matrix.pixels("u1", 5)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = np.moveaxis(data, 0, -1)
        for dimension, label in zip(file["raw"].dims, ("y", "x", "z"), strict=True):
            dimension.label = label
    assert np.array_equal(read_all(tmp_path / "a.h5")[0], data)


@pytest.mark.parametrize("size", ["0.1 0.1 0.1", [], [0.004]])
def test_odd_pixel_sizes_do_not_stop_the_pixels(tmp_path, size):
    data = matrix.pixels("u1", 2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = data
        file["raw"].attrs["element_size_um"] = size
    found, source = read_all(tmp_path / "a.h5")
    assert np.array_equal(found, data) and source.pixel_size_nm == (4.0 if size == [0.004] else None)


def test_hdf5_by_a_filter_that_is_missing(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((1, matrix.HEIGHT, matrix.WIDTH))
        creation.set_filter(305, h5py.h5z.FLAG_OPTIONAL, (0,))  # a number that no filter has
        space = h5py.h5s.create_simple((2, matrix.HEIGHT, matrix.WIDTH))
        raw = h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT8, space, creation)
        raw.write_direct_chunk((0, 0, 0), bytes(matrix.HEIGHT * matrix.WIDTH), 0)
    with pytest.raises(InputError, match="filter that is missing: `pip install hdf5plugin`"):
        read_all(tmp_path / "a.h5")


ODD_STEPS = [None, [{"type": "scale", "path": "x"}], [{"type": "scale", "scale": []}], 3]


@pytest.mark.parametrize("steps", ODD_STEPS)
def test_odd_scales_of_ome_zarr(tmp_path, steps):
    group, data = zarr.open_group(tmp_path / "vol.zarr", mode="w"), matrix.pixels("u1", 2)
    group.create_array("0", shape=data.shape, chunks=(1, 16, 16), dtype="u1")[:] = data
    level = {"path": "0", "coordinateTransformations": steps}
    group.attrs["multiscales"] = [{"axes": ["z", "y", "x"], "datasets": [level]}]
    found, source = read_all(tmp_path / "vol.zarr")
    assert np.array_equal(found, data) and source.pixel_size_nm is None


def test_pixel_size_of_ome_zarr_whose_last_axis_is_not_x(tmp_path):
    group, data = zarr.open_group(tmp_path / "vol.zarr", mode="w"), matrix.pixels("u1", 5)
    last = np.moveaxis(data, 0, -1)
    group.create_array("0", shape=last.shape, chunks=(16, 16, 5), dtype="u1")[:] = last
    axes = [{"name": name, "type": "space", "unit": unit} for name, unit in zip("yxz", ("nm", "nm", "um"), strict=True)]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [4, 4, 0.03]}]}
    group.attrs["multiscales"] = [{"axes": axes, "datasets": [level]}]
    found, source = read_all(tmp_path / "vol.zarr")
    assert np.array_equal(found, data) and source.pixel_size_nm == 4.0


def test_zarr_groups_below_one_another(tmp_path):
    root, data = zarr.open_group(tmp_path / "nest.zarr", mode="w"), matrix.pixels("u1", 2)
    for name in ("volumes/raw", "volumes/labels"):
        root.create_array(name, shape=data.shape, chunks=(1, 16, 16), dtype="u1")[:] = data
    root.create_array("z", shape=(2,), chunks=(2,), dtype="f4")
    for place in ("nest.zarr", "nest.zarr/volumes"):
        with pytest.raises(InputError, match="2 arrays, name one of `.*nest.zarr/volumes/labels`") as caught:
            open_source(tmp_path / place, ReadOptions())
        for path in re.findall("`(.*?)`", str(caught.value)):
            assert np.array_equal(read_all(path)[0], data)
    with pytest.raises(InputError, match="no array volumes/row, name one of `.*nest.zarr/volumes/labels`"):
        open_source(tmp_path / "nest.zarr/volumes/row", ReadOptions())
    image = zarr.open_group(tmp_path / "bf.zarr", mode="w").create_group("0")  # as bioformats2raw writes it
    for level in (1, 2):
        small = data[:, ::level, ::level]
        image.create_array(f"{level}", shape=small.shape, chunks=(1, 16, 16), dtype="u1")[:] = small
    image.attrs["multiscales"] = [{"datasets": [{"path": "1"}, {"path": "2"}]}]
    assert np.array_equal(read_all(tmp_path / "bf.zarr")[0], data)


def test_zarr_with_a_pipe_for_a_chunk(tmp_path):
    """A linked folder is none, and files may be links; neither is a circle of folders followed."""
    data, root = matrix.pixels("u1", 2), zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    root.create_array("raw", shape=data.shape, chunks=(1, 64, 64), dtype="u1")[:] = data
    chunk = tmp_path / "a.zarr/raw/1.0.0"
    chunk.rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a.zarr/raw/again").symlink_to(".")
    assert np.array_equal(read_all(tmp_path / "a.zarr/raw")[0], data)
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(InputError, match="1.0.0 cannot be read, it is no regular file"):
        open_source(tmp_path / "a.zarr/raw", ReadOptions())


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(tmp_path, version):
    data = matrix.pixels("u2", 4)
    group = zarr.open_group(tmp_path / "vol.zarr", mode="w", zarr_format=version)
    for level, pixels in enumerate((data, data[:, ::2, ::2])):
        array = group.create_array(str(level), shape=pixels.shape, chunks=(1, 16, 16), dtype=pixels.dtype)
        array[:] = pixels
    axes = [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    levels = [
        {"path": str(i), "coordinateTransformations": [{"type": "scale", "scale": [0.04, 0.004 * 2**i, 0.004 * 2**i]}]}
        for i in (0, 1)
    ]
    said = [{"axes": axes, "datasets": levels, "version": "0.4"}]
    group.attrs.update({"multiscales": said} if version == 2 else {"ome": {"version": "0.5", "multiscales": said}})
    found, source = read_all(tmp_path / "vol.zarr")
    assert np.array_equal(found, data) and source.pixel_size_nm == 4.0
    found, source = read_all(tmp_path / "vol.zarr" / "1")
    assert np.array_equal(found, data[:, ::2, ::2]) and source.pixel_size_nm == 8.0
    two = zarr.open_group(tmp_path / "two.zarr", mode="w", zarr_format=version)
    for name in ("raw", "labels"):
        two.create_array(name, shape=data.shape, chunks=(1, 16, 16), dtype=data.dtype)[:] = data
    with pytest.raises(InputError, match="2 arrays, name one of `.*two.zarr/labels`"):
        open_source(tmp_path / "two.zarr", ReadOptions())
    assert np.array_equal(read_all(tmp_path / "two.zarr" / "raw")[0], data)


def test_pixel_sizes(tmp_path):
    data = matrix.pixels("u1", 2)
    imagej = {"imagej": True, "metadata": {"unit": "um", "axes": "ZYX"}}
    tifffile.imwrite(tmp_path / "j.tif", data, resolution=(1 / 0.008, 1 / 0.008), **imagej)
    tifffile.imwrite(tmp_path / "o.tif", data, ome=True, photometric="minisblack",
                     metadata={"axes": "ZYX", "PhysicalSizeX": 8.0, "PhysicalSizeXUnit": "nm"})  # fmt: skip
    tifffile.imwrite(tmp_path / "c.tif", data, resolution=(1.25e6, 1.25e6), resolutionunit=3, photometric="minisblack")
    tifffile.imwrite(tmp_path / "d.tif", data, resolution=(72, 72), resolutionunit=2, photometric="minisblack")
    sizes = [read_all(tmp_path / f"{name}.tif")[1].pixel_size_nm for name in "jocd"]
    assert sizes[:3] == pytest.approx([8.0, 8.0, 8.0], rel=1e-3) and sizes[3] is None


def test_what_is_not_read(tmp_path):
    for name in ("a.dm4", "a.czi", "a.ser"):
        (tmp_path / name).write_bytes(b"x" * 100)
        with pytest.raises(InputError, match="save it as TIFF"):
            open_source(tmp_path / name, ReadOptions())
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.tif").symlink_to("/dev/zero")
    (tmp_path / "folder.tif").mkdir()
    for name in ("pipe.png", "device.tif", "folder.tif"):
        with pytest.raises(InputError, match="no regular file"):
            open_source(tmp_path / name, ReadOptions())
    data = matrix.pixels("u1")
    for name, how in (
        ("webp", {"compression": "webp", "photometric": "rgb", "planarconfig": "contig"}),
        ("cmyk", {"photometric": "separated"}),
    ):  # fmt: skip
        shown = np.stack([data[0]] * (3 if name == "webp" else 4), -1)
        tifffile.imwrite(tmp_path / f"{name}.tif", shown, metadata=None, **how)
        with pytest.raises(InputError, match="codec WEBP|colours SEPARATED"):
            open_source(tmp_path / f"{name}.tif", ReadOptions())
    tifffile.imwrite(tmp_path / "complex.tif", data.astype("c8"), photometric="minisblack")
    with pytest.raises(InputError, match="type complex64"):
        open_source(tmp_path / "complex.tif", ReadOptions())
    tifffile.imwrite(tmp_path / "bomb.tif", np.zeros((64, 64), "u1"), compression="zlib")
    with pytest.raises(InputError, match="4096 pixels.*`--max-pixels 4096`"):
        open_source(tmp_path / "bomb.tif", ReadOptions(max_pixels=1000))


def test_a_tiff_that_was_cut_is_refused(tmp_path):
    """Cut anywhere, a file is refused, never filled up."""
    data = matrix.pixels("u2", 2)
    path = tmp_path / "a.tif"
    for compression in (None, "lzw", "zlib", "zstd", "packbits"):
        tifffile.imwrite(path, data, photometric="minisblack", compression=compression, rowsperstrip=9)
        whole = path.read_bytes()
        for cut in np.linspace(10, len(whole) - 1, 12).astype(int):
            path.write_bytes(whole[:cut])
            with pytest.raises(InputError):
                read_all(path)


def test_without_the_extra_png_is_read_and_a_tiff_names_the_install_line(tmp_path):
    (tmp_path / "block").mkdir()
    for name in ("tifffile", "imagecodecs", "mrcfile", "h5py", "zarr"):
        (tmp_path / "block" / f"{name}.py").write_text("raise ImportError('not here')\n")
    Image.fromarray(matrix.pixels("u1")[0]).save(tmp_path / "a.png")
    Image.fromarray(matrix.pixels("u1")[0]).save(tmp_path / "a.tif")
    for name in ("a.mrc", "a.h5"):
        (tmp_path / name).write_bytes(b"x")
    code = (
        "import sys\nfrom pathlib import Path\nfrom natural2nanoscale.data.readers.opening import open_source\n"
        "from natural2nanoscale.data.readers.base import ReadOptions\n"
        "from natural2nanoscale.errors import InputError\n"
        "for path in sys.argv[1:]:\n try: print(open_source(Path(path), ReadOptions()).read(0).shape)\n"
        " except InputError as error: print(error)\n"
    )
    files = [str(tmp_path / name) for name in ("a.png", "a.tif", "a.mrc", "a.h5")]
    env = os.environ | {"PYTHONPATH": f"{tmp_path / 'block'}{os.pathsep}{ROOT}"}
    said = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, env=env)
    lines = said.stdout.splitlines()
    assert lines[0] == f"({matrix.HEIGHT}, {matrix.WIDTH})", said.stderr
    assert len(lines) == 4 and all('`pip install -e ".[em]"`' in line for line in lines[1:])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own peak of memory")
@pytest.mark.parametrize("kind", ["mrc", "tif", "h5"])
def test_a_volume_larger_than_memory_is_prepared_in_under_1_gb(tmp_path, kind):
    """Sparse files of 3 GB with six annotated slices: `prepare`, then slices all over, in a process of its own."""
    count, side = 768, 2048
    shape, path = (count, side, side), tmp_path / f"em.{kind}"
    if kind == "mrc":
        with mrcfile.new(path) as mrc:
            mrc.set_data(np.zeros((1, 8, 8), "i1"))
        header = bytearray(path.read_bytes()[:1024])
        header[:12] = struct.pack("<iii", side, side, count)
        path.write_bytes(header)
        os.truncate(path, 1024 + count * side * side)
    elif kind == "tif":
        tifffile.memmap(path, shape=shape, dtype="u1", photometric="minisblack").flush()
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("raw", shape, "u1", chunks=(1, 1024, 1024))
    (tmp_path / "masks").mkdir()
    for number in range(0, count, count // 6):
        mask = np.zeros((side, side), "u1")
        mask[:, : side // 3], mask[0, 0] = 1, number % 2
        Image.fromarray(mask).save(tmp_path / "masks" / f"mask_{number:04d}.png", compress_level=1)
    code = (
        "import sys\nfrom pathlib import Path\nfrom natural2nanoscale.data.prepare.convert import prepare\n"
        "from natural2nanoscale.data.prepare.settings import Preparation\n"
        "from natural2nanoscale.data.prepare.sources import Reader, ReadOptions\n"
        "place = Path(sys.argv[1])\n"
        "prepare(Preparation(place, place.parent / 'masks', place.parent / 'data', window=(0, 255), only_pairs=True,\n"
        "                    gap=0, size=(512, 512), tiles=1))\n"
        "with Reader(ReadOptions(10**9)) as reader:\n"
        " for page in reader.pages_of(place, 'slice')[::16]: reader.image(page)\n"
        # not getrusage, whose peak a process takes over from the one that started it
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(page.index, int(peak.split()[1]) // 1024)\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=env)
    assert said.returncode == 0, said.stderr
    index, peak = said.stdout.splitlines()[-1].split()
    assert int(index) == 752 and int(peak) < 600


def test_prepare_takes_one_volume_per_container(tmp_path):
    images, masks = stack(5, 12, 16)
    source = Source(tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"], file["labels"] = images, masks
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    for name, pixels in (("raw", images), ("labels", masks)):
        group.create_array(name, shape=pixels.shape, chunks=(1, 8, 8), dtype=pixels.dtype)[:] = pixels
    for name, pixels in (("em", images), ("labels", masks)):
        np.save(tmp_path / f"{name}.npy", pixels)
        with mrcfile.new(tmp_path / f"{name}.mrc") as mrc:
            mrc.set_data(pixels.astype("u2"))
    group.create_array("one", shape=images[0].shape, chunks=(8, 8), dtype="u1")[:] = images[0]
    group.create_array("one_label", shape=masks[0].shape, chunks=(8, 8), dtype="u1")[:] = masks[0]
    source.out = tmp_path / "single"
    single = source.prepare("--val", "0", "--test", "0", images="a.zarr/one", masks="a.zarr/one_label")["train"]
    assert np.array_equal(single.mask(single.stems[0]), masks[0])
    for number, (em, labels) in enumerate(
        (
            ("a.h5:/raw", "a.h5:/labels"),
            ("a.zarr/raw", "a.zarr/labels"),
            ("em.npy", "labels.npy"),
            ("em.mrc", "labels.mrc"),
        )
    ):
        source.out = tmp_path / f"data{number}"
        parts = source.prepare("--val", "0.2", "--test", "0.2", "--window", "0,255", images=em, masks=labels)
        for folder in parts.values():
            for stem in folder.stems:
                index = int(stem[-4:])
                assert np.array_equal(folder.image(stem), images[index])
                assert np.array_equal(folder.mask(stem), masks[index])
