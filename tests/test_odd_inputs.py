"""Files as people have them: right pixels, or a refusal whose printed remedy is run here and gives the right pixels."""

import re
import shlex
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from em_source import Source, stack
from PIL import Image

from natural2nanoscale.data.classes import color_table, palette
from natural2nanoscale.errors import InputError

COUNT, HEIGHT, WIDTH = 5, 40, 48
SPLIT = ("--val", "0.2", "--test", "0.2", "--gap", "0")
IMAGES, MASKS = stack(COUNT, HEIGHT, WIDTH)


@dataclass
class Odd:
    """What a case expects after its files were written: the sources' places, masks and slices in order.

    choose: which of the remedies printed in each refusal is the right one. flags: given from the start. note: printed.
    """

    images: str = "images"
    masks: str = "masks"
    labels: np.ndarray = field(default_factory=lambda: MASKS)
    slices: np.ndarray | None = field(default_factory=lambda: IMAGES)
    flags: tuple[str, ...] = ()
    choose: tuple[int, ...] = ()
    note: str = ""
    refused: str = ""


CASES = {}


def case(build):
    CASES[build.__name__] = build
    return build


def folder(path: Path, pages, name="cell_{}", suffix="png", first=0, **how) -> None:
    path.mkdir(parents=True)
    for i, page in enumerate(pages, first):
        file = path / f"{name.format(i)}.{suffix}"
        if suffix == "png":
            Image.fromarray(page).save(file)
        else:
            tifffile.imwrite(file, page, **({"photometric": "minisblack", "metadata": None} | how))


def plain(path: Path, images=True, masks=True) -> None:
    if images:
        folder(path / "images", IMAGES)
    if masks:
        folder(path / "masks", MASKS)


def written(kind: str, masks=MASKS, suffix="tif", **how):
    """A case whose masks are the file or folder of `masks`."""

    def build(path: Path) -> None:
        plain(path, masks=False)
        folder(path / "masks", masks.astype(kind), suffix=suffix, **how)

    return build


# ---- slices

DEEP = IMAGES.astype("i2") * 100 - 9000
WINDOW = ("--window", "-9000,16500")


@case
def big_endian_int16_lzw(path):
    plain(path, images=False)
    folder(path / "images", DEEP, suffix="tif", byteorder=">", compression="lzw", predictor=True)
    return Odd(flags=("--window=-9000,16500",))


@case
def big_endian_float_deflate_stack(path):
    tifffile.imwrite(path / "em.tif", DEEP.astype("f4"), byteorder=">", compression="zlib", photometric="minisblack")
    tifffile.imwrite(
        path / "labels.tif", MASKS.astype("u4"), byteorder=">", compression="lzw", photometric="minisblack"
    )
    return Odd("em.tif", "labels.tif", flags=("--window=-9000,16500",))


@case
def pyramid(path):
    plain(path, images=False)
    (path / "images").mkdir()
    for i, page in enumerate(IMAGES):
        with tifffile.TiffWriter(path / "images" / f"cell_{i}.tif") as tif:
            tif.write(page, photometric="minisblack", metadata=None)
            for step in (2, 4):
                tif.write(page[::step, ::step], photometric="minisblack", metadata=None, subfiletype=1)
    return Odd(note="reduced copies are no slices")


@case
def unexplained_pyramid(path):
    plain(path, images=False)
    (path / "images").mkdir()
    with tifffile.TiffWriter(path / "images" / "cell_0.tif") as tif:
        tif.write(IMAGES[0], photometric="minisblack", metadata=None)
        tif.write(IMAGES[0, ::2, ::2], photometric="minisblack", metadata=None)
    return Odd(refused="pages of different kinds")


def two_channels(path, choose, **how):
    both = np.stack([IMAGES, 255 - IMAGES], axis=1)
    tifffile.imwrite(path / "em.tif", both, photometric="minisblack", metadata={"axes": "ZCYX"}, **how)
    tifffile.imwrite(path / "labels.tif", MASKS, photometric="minisblack")
    return Odd("em.tif", "labels.tif", slices=both[:, choose], choose=(choose,))


@case
def two_channels_ome(path):
    return two_channels(path, 0, ome=True)


@case
def two_channels_imagej(path):
    return two_channels(path, 1, imagej=True)


@case
def two_samples_per_pixel(path):
    plain(path, images=False)
    pages = np.stack([IMAGES, 255 - IMAGES], axis=-1)
    folder(path / "images", pages, suffix="tif", planarconfig="contig", extrasamples=[0])
    return Odd(choose=(0,))


@case
def slices_along_the_last_axis_said(path):
    tifffile.imwrite(path / "em.tif", np.moveaxis(IMAGES, 0, -1), photometric="minisblack", metadata={"axes": "YXZ"})
    plain(path, images=False)
    return Odd("em.tif", slices=IMAGES, choose=()) if names(path, "slice_{:04d}") else None


def names(path, name):
    """Name the masks of `plain` as the slices of a lone stack are."""
    for i in range(COUNT):
        (path / "masks" / f"cell_{i}.png").rename(path / "masks" / f"{name.format(i)}.png")
    return True


@case
def slices_along_the_last_axis_unsaid(path):
    np.save(path / "em.npy", np.moveaxis(IMAGES, 0, -1))
    np.save(path / "labels.npy", np.moveaxis(MASKS, 0, -1))
    return Odd("em.npy", "labels.npy", choose=("note",), note="pass `--axes YXZ`", flags=())


@case
def last_axis_unsaid_beside_a_stack_of_masks(path):
    np.save(path / "em.npy", np.moveaxis(IMAGES, 0, -1))
    tifffile.imwrite(path / "labels.tif", MASKS, photometric="minisblack")
    return Odd("em.npy", "labels.tif", choose=("note",), note="pass `--axes YXZ`")


@case
def four_axes_unsaid(path):
    np.save(path / "em.npy", np.stack([IMAGES, 255 - IMAGES], axis=1))
    np.save(path / "labels.npy", MASKS)
    return Odd("em.npy", "labels.npy", choose=(0, 0))


@case
def one_ifd_of_imagej(path):
    from matrix import imagej_bytes

    (path / "em.tif").write_bytes(imagej_bytes(IMAGES, ">"))
    tifffile.imwrite(path / "labels.tif", MASKS, photometric="minisblack")
    return Odd("em.tif", "labels.tif")


@case
def imagej_without_its_planes(path):
    from matrix import imagej_bytes

    whole = imagej_bytes(IMAGES, ">")
    (path / "em.tif").write_bytes(whole[: -HEIGHT * WIDTH])
    tifffile.imwrite(path / "labels.tif", MASKS, photometric="minisblack")
    return Odd("em.tif", "labels.tif", refused="announces 5 slices")


@case
def orientation_tags(path):
    tag = [(274, 3, 1, 8, True)]
    folder(path / "images", IMAGES, suffix="tif", extratags=tag)
    folder(path / "masks", MASKS, suffix="tif", extratags=tag)
    return Odd(note="Orientation tag (8) is ignored")


@case
def slices_that_say_0_is_white(path):
    plain(path, images=False)
    folder(path / "images", IMAGES, suffix="tif", photometric="miniswhite")
    return Odd(slices=255 - IMAGES, note="its greys are turned over")


@case
def mrc_of_signed_bytes(path):
    plain(path, images=False)
    names(path, "slice_{:04d}")
    with mrcfile.new(path / "em.mrc") as mrc:
        mrc.set_data((IMAGES.astype("i2") - 128).astype("i1"))
    return Odd("em.mrc", flags=("--window=-128,127",), note="the first on top")


@case
def mrc_of_imod(path):
    for name, pixels in (("em", IMAGES), ("labels", MASKS)):
        with mrcfile.new(path / f"{name}.mrc") as mrc:
            mrc.set_data(np.ascontiguousarray(pixels[:, ::-1]).view("i1"))
        raw = bytearray((path / f"{name}.mrc").read_bytes())
        raw[152:160] = struct.pack("<ii", 1146047817, 0)
        (path / f"{name}.mrc").write_bytes(raw)
    return Odd("em.mrc", "labels.mrc", note="lowest row first")


@case
def mrc_that_does_not_say_that_rows_begin_below(path):
    """Masks drawn upright, as PNG, stay as they are; those in MRC are turned over too."""
    plain(path, images=False)
    names(path, "slice_{:04d}")
    with mrcfile.new(path / "em.mrc") as mrc:
        mrc.set_data(np.ascontiguousarray(IMAGES[:, ::-1]).astype("u2"))
    return Odd("em.mrc", flags=("--window=0,255", "--flip-y"), note="turned over by --flip-y")


@case
def hdf5_of_several_arrays(path):
    with h5py.File(path / "a.h5", "w") as file:
        file["labels"], file["raw"] = MASKS, IMAGES
    return Odd("a.h5", "a.h5:/labels", choose=("--images 1",))


@case
def zarr_of_several_arrays(path):
    group = zarr.open_group(path / "a.zarr", mode="w")
    for name, pixels in (("labels", MASKS), ("raw", IMAGES)):
        group.create_array(name, shape=pixels.shape, chunks=(1, 16, 16), dtype=pixels.dtype)[:] = pixels
    return Odd("a.zarr/raw", "a.zarr/labels")


@case
def npz_of_several_arrays(path):
    np.savez(path / "a.npz", labels=MASKS, raw=IMAGES)
    return Odd("a.npz", "a.npz:labels", choose=("--images 1",))


@case
def information_bar_that_masks_lack(path):
    bar = np.zeros((COUNT, 9, WIDTH), "u1")
    folder(path / "images", np.concatenate([IMAGES, bar], axis=1))
    plain(path, images=False)
    return Odd(choose=(0,))


@case
def information_bar_that_masks_have(path):
    bar = np.zeros((COUNT, 9, WIDTH), "u1")
    bar[:, 3:6, 5:9] = 255
    folder(path / "images", np.concatenate([IMAGES, bar], axis=1))
    folder(path / "masks", np.concatenate([MASKS, bar * 0], axis=1))
    return Odd(choose=("note",), note="look like an information bar: pass `--crop-bottom 9`")


@case
def more_pixels_than_the_limit(path):
    plain(path)
    return Odd(flags=("--max-pixels", "100"), choose=(0,))


@case
def a_pipe(path):
    import os

    plain(path)
    os.mkfifo(path / "images" / "x.png")
    return Odd(refused="no regular file")


@case
def digital_micrograph(path):
    plain(path, images=False)
    (path / "images").mkdir()
    (path / "images" / "a.dm4").write_bytes(b"x")
    return Odd(refused="save it as TIFF")


@case
def jpeg_called_tif(path):
    plain(path, images=False)
    (path / "images").mkdir()
    Image.fromarray(IMAGES[0]).save(path / "images" / "cell_0.tif", format="JPEG")
    return Odd(refused="take the original")


@case
def png_called_tif(path):
    plain(path, images=False)
    folder(path / "images", IMAGES)
    for file in list((path / "images").iterdir()):
        file.rename(file.with_suffix(".tif"))
    return Odd()


@case
def a_stack_cut_short(path):
    plain(path, images=False)
    tifffile.imwrite(path / "em.tif", IMAGES, photometric="minisblack", compression="zlib")
    (path / "em.tif").write_bytes((path / "em.tif").read_bytes()[:-900])
    return Odd("em.tif", refused="cannot be read")


@case
def twelve_bits_in_three_halves_of_a_byte(path):
    """Packed, as cameras write them; tifffile reads such files and writes none."""
    plain(path, images=False)
    (path / "images").mkdir()
    for i, page in enumerate(IMAGES):
        first, second = page.reshape(-1, 2).astype("u4").T * 16 + 5
        packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=-1).astype("u1").tobytes()
        tags = {256: WIDTH, 257: HEIGHT, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: HEIGHT, 279: len(packed)}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        start = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
        (path / "images" / f"cell_{i}.tif").write_bytes(start + packed)
    return Odd(flags=("--window", "5,4085"))


@case
def a_page_of_another_size(path):
    plain(path, images=False)
    with tifffile.TiffWriter(path / "em.tif") as tif:
        for i, page in enumerate(IMAGES):
            tif.write(page[: 30 if i == 2 else None], photometric="minisblack", metadata=None)
    return Odd("em.tif", refused="pages of different kinds, 48x40 .* and 48x30")


@case
def an_overview_beside_the_stack(path):
    plain(path, images=False)
    with tifffile.TiffWriter(path / "em.ome.tif", ome=True) as tif:
        tif.write(IMAGES, photometric="minisblack", metadata={"axes": "ZYX"})
        tif.write(IMAGES[0, ::2, ::2], photometric="minisblack", metadata={"axes": "YX"})
    return Odd("em.ome.tif", refused="holds 2 images of shapes .*save one image per file")


@case
def slices_saved_as_channels(path):
    tifffile.imwrite(path / "em.tif", IMAGES, imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(path / "labels.tif", MASKS, photometric="minisblack")
    return Odd("em.tif", "labels.tif", choose=("--axes ZYX",))


@case
def axes_of_length_one(path):
    np.save(path / "em.npy", IMAGES[..., None])
    np.save(path / "labels.npy", MASKS[:, None])
    return Odd("em.npy", "labels.npy")


@case
def one_slice_per_hdf5_file(path):
    for kind, pages in (("images", IMAGES), ("masks", MASKS)):
        (path / kind).mkdir()
        for i, page in enumerate(pages):
            with h5py.File(path / kind / f"cell_{i}.h5", "w") as file:
                file["exported_data"] = page
    return Odd()


@case
def slices_and_masks_in_each_hdf5_file(path):
    (path / "volumes").mkdir()
    for i in range(COUNT):
        with h5py.File(path / "volumes" / f"cell_{i}.h5", "w") as file:
            file["volumes/labels"], file["volumes/raw"] = MASKS[i], IMAGES[i]
    return Odd("volumes", "volumes:/volumes/labels", choose=("--images 2",))


@case
def mrc_with_an_extended_header(path):
    with mrcfile.new(path / "em.mrc") as mrc:
        mrc.set_data(IMAGES.astype("i2"))
        mrc.set_extended_header(np.ones(1280, "V1"))
        mrc.header.exttyp = b"FEI1"
    tifffile.imwrite(path / "labels.tif", MASKS, photometric="minisblack")
    return Odd("em.mrc", "labels.tif", flags=("--window=0,255",))


@case
def a_stack_of_masks_that_is_a_page_short(path):
    tifffile.imwrite(path / "em.tif", IMAGES, photometric="minisblack")
    tifffile.imwrite(path / "labels.tif", MASKS[1:], photometric="minisblack")
    return Odd("em.tif", "labels.tif", refused="has 5 page.* but .* has 4, expected one mask per slice")


@case
def a_single_slice(path):
    with h5py.File(path / "a.h5", "w") as file:
        file["raw"], file["labels"] = IMAGES[0], MASKS[0]
    return Odd("a.h5:/raw", "a.h5:/labels", refused="1 slices .* cannot be split into train, val and test")


# ---- masks


@case
def white_is_0_masks(path):
    written("u1", (MASKS == 1) * 255, photometric="miniswhite")(path)
    return Odd(labels=(MASKS == 1).astype("u1"), note="labels keep their stored values")


@case
def bits_of_fax_masks(path):
    if not shutil.which("tiffcp"):
        pytest.skip("libtiff-tools are not installed")
    written("bool", MASKS == 1, photometric="miniswhite")(path)
    for file in sorted((path / "masks").iterdir()):
        subprocess.run(["tiffcp", "-c", "g4", file, path / "g4.tif"], check=True)
        (path / "g4.tif").rename(file)
    return Odd(labels=(MASKS == 1).astype("u1"))


@case
def labels_from_1(path):
    written("u1", MASKS + 1)(path)
    return Odd(choose=(0,))


@case
def labels_from_1_with_names(path):
    written("u2", MASKS + 1)(path)
    return Odd(flags=("--classes", "a,b,c"), choose=(0,))


@case
def labels_from_1_with_0_unlabelled(path):
    some = MASKS + 1
    some[:, :5] = 0
    written("u1", some)(path)
    expected = MASKS.copy()
    expected[:, :5] = 255
    return Odd(labels=expected, flags=("--classes", "a,b,c"), choose=(0,))


@case
def labels_from_1_of_which_one_is_absent(path):
    written("u1", np.where(MASKS == 1, 3, MASKS + 1))(path)
    return Odd(labels=np.where(MASKS == 1, 2, MASKS), flags=("--classes", "a,b,c"), choose=(0,))


@case
def two_labels_without_0(path):
    written("u1", (MASKS == 1) * 2 + 1)(path)
    return Odd(labels=(MASKS == 1).astype("u1"), choose=(0,))


@case
def twenty_nine_labels_from_1(path):
    written("u1", objects("u1", 29)[0] + 1)(path)
    return Odd(flags=("--labels-from", "1"), refused="makes 29 classes: name them")


def objects(kind, count, **how):
    numbers = np.resize(np.arange(count), (COUNT, HEIGHT, WIDTH))
    return numbers.astype(kind), (numbers > 0).astype("u1")


@case
def thousands_of_objects(path):
    numbers, truth = objects("u2", 1900)
    written("u2", numbers)(path)
    return Odd(labels=truth, choose=(0,))


@case
def a_few_objects(path):
    numbers, truth = objects("u1", 29)
    written("u1", numbers, suffix="png")(path)
    return Odd(labels=truth, choose=(0,))


@case
def objects_of_32_bits_with_gaps(path):
    numbers, truth = objects("u4", 300)
    written("u4", numbers * 70001, compression="lzw", byteorder=">")(path)
    return Odd(labels=truth, choose=(0,))


@case
def objects_and_minus_1(path):
    numbers, truth = objects("i4", 40)
    numbers[:, 0], truth[:, 0] = -1, 255
    written("i4", numbers)(path)
    return Odd(labels=truth, choose=(0,))


@case
def objects_with_names(path):
    numbers, truth = objects("u2", 500)
    written("u2", numbers)(path)
    return Odd(labels=truth, flags=("--classes", "background,mitochondrion"), choose=(0,))


@case
def bytes_that_became_signed(path):
    written("i1", (MASKS == 1).astype("i2") - 128)(path)
    return Odd(labels=(MASKS == 1).astype("u1"), choose=(0,))


@case
def minus_1_is_unlabelled(path):
    some = MASKS.astype("i2")
    some[:, :3] = -1
    written("i2", some)(path)
    expected = MASKS.copy()
    expected[:, :3] = 255
    return Odd(labels=expected, choose=(0,))


@case
def int64_labels(path):
    written("i8")(path)
    return Odd()


@case
def float_labels(path):
    written("f4")(path)
    return Odd()


@case
def probabilities(path):
    written("f4", MASKS / 3)(path)
    return Odd(refused="fractions")


@case
def spread_greys(path):
    written("u1", np.array([0, 127, 254])[MASKS], suffix="png")(path)
    return Odd(choose=(0,))


@case
def a_16_bit_ignore_value(path):
    some = MASKS.astype("u2")
    some[:, :3] = 65535
    written("u2", some)(path)
    expected = MASKS.copy()
    expected[:, :3] = 255
    return Odd(labels=expected, choose=(0,))


@case
def one_folder_per_class(path):
    plain(path, masks=False)
    for i, name in enumerate(("axon", "mito", "zone")):
        folder(path / "masks" / name, ((MASKS == i) * 255).astype("u1"))
    return Odd(choose=(0,))


@case
def one_folder_per_class_and_background(path):
    plain(path, masks=False)
    for i, name in enumerate(("mito", "zone"), 1):
        folder(path / "masks" / name, ((MASKS == i) * 255).astype("u1"))
    return Odd(choose=(0,))


@case
def one_page_per_class(path):
    tifffile.imwrite(path / "em.tif", IMAGES, photometric="minisblack")
    pages = np.stack([MASKS == i for i in range(3)], axis=1).reshape(-1, HEIGHT, WIDTH).astype("u1")
    tifffile.imwrite(path / "labels.tif", pages, photometric="minisblack", metadata=None)
    return Odd("em.tif", "labels.tif", choose=(0,))


@case
def one_channel_per_class(path):
    tifffile.imwrite(path / "em.tif", IMAGES, photometric="minisblack")
    pages = np.stack([MASKS == i for i in range(3)], axis=1).astype("u1")
    tifffile.imwrite(path / "labels.tif", pages, imagej=True, metadata={"axes": "ZCYX"})
    return Odd("em.tif", "labels.tif", choose=(0,))


@case
def colours_of_0_and_1(path):
    written("u1", color_table(palette(3))[MASKS] // 255, suffix="png")(path)
    return Odd()


@case
def colours_of_0_and_1_with_black(path):
    colors = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0)])
    written("u1", colors[MASKS], suffix="png")(path)
    return Odd(choose=("--colors bg=#000000,red=#ff0000,green=#00ff00",))


@case
def the_class_in_the_alpha_channel(path):
    pages = np.zeros((COUNT, HEIGHT, WIDTH, 4), "u1")
    pages[..., 3] = MASKS
    written("u1", pages, suffix="png")(path)
    return Odd(choose=(0,))


@case
def colours_under_transparent_pixels(path):
    pages = np.full((COUNT, HEIGHT, WIDTH, 4), 255, "u1")
    pages[..., :3] = color_table(palette(3))[MASKS]
    pages[:, :4, :, 3] = 0
    written("u1", pages, suffix="png")(path)
    expected = MASKS.copy()
    expected[:, :4] = 255
    return Odd(labels=expected, choose=(0,))


@case
def greys_with_an_opaque_alpha(path):
    written("u1", np.stack([MASKS, MASKS * 0 + 255], axis=-1), photometric="minisblack", extrasamples=[2],
            planarconfig="contig")(path)  # fmt: skip
    return Odd()


@case
def pages_that_nobody_annotated(path):
    some = MASKS.copy()
    some[1] = 0
    written("u1", some)(path)
    return Odd(labels=MASKS[[0, 2, 3, 4]], slices=IMAGES[[0, 2, 3, 4]], note="left out as not annotated: cell_1")


@case
def pages_of_background(path):
    some = MASKS.copy()
    some[1] = 0
    written("u1", some)(path)
    return Odd(labels=some, choose=("note",), note="pass `--blank background`")


DISC = np.stack([np.hypot(*np.ogrid[-20:20, -20 - i : 28 - i]) < 12 for i in range(COUNT)]).astype("u1")


def soft(spread: int) -> np.ndarray:
    """Discs of white on black whose greys scatter, as of JPEG."""
    return (DISC * 255 + np.random.default_rng(0).integers(-spread, spread + 1, DISC.shape)).clip(0, 255)


@case
def black_and_white_by_jpeg(path):
    written("u1", soft(30), suffix="png")(path)
    return Odd(labels=DISC, choose=(0,))


@case
def black_and_white_a_little_off(path):
    written("u1", soft(2), suffix="png")(path)
    return Odd(labels=DISC, flags=("--classes", "background,cell"), choose=(0,))


@case
def black_and_white_of_two_programs(path):
    written("u1", DISC * np.array([1, 255, 1, 255, 1], "u1")[:, None, None], suffix="png")(path)
    return Odd(labels=DISC, choose=(0,))


@case
def a_screenshot_of_coloured_masks(path):
    colors = np.array([(90, 90, 90), (220, 60, 60), (60, 60, 220)])[MASKS]
    written("u1", colors + np.random.default_rng(0).integers(0, 8, colors.shape), suffix="png")(path)
    return Odd(refused="save the masks without smoothing, resizing or JPEG")


@case
def masks_by_columns(path):
    written("u1", MASKS.transpose(0, 2, 1))(path)
    return Odd(refused="rows and columns are exchanged, save it transposed")


CUBE = stack(8, 8, 8)  # of which no shape tells how it lies


@case
def a_cube_whose_masks_name_their_axes(path):
    np.save(path / "em.npy", CUBE[0].transpose(1, 2, 0))
    tifffile.imwrite(path / "masks.tif", CUBE[1], imagej=True, metadata={"axes": "ZYX"})
    return Odd("em.npy", "masks.tif", CUBE[1], CUBE[0], flags=("--axes", "YXZ"))


@case
def a_cube_whose_zarr_masks_name_their_axes(path):
    np.save(path / "em.npy", CUBE[0].transpose(1, 2, 0))
    masks = zarr.create_array(path / "masks.zarr", shape=(8, 8, 8), dtype="u1", dimension_names=["z", "y", "x"])
    masks[:] = CUBE[1]
    return Odd("em.npy", "masks.zarr", CUBE[1], CUBE[0], flags=("--axes", "YXZ"))


@case
def a_cube_of_which_both_files_name_the_wrong_axes(path):
    for name, pixels in zip(("em", "masks"), CUBE, strict=True):
        wrong = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        tifffile.imwrite(path / f"{name}.tif", wrong, imagej=True, metadata={"axes": "ZYX"})
    return Odd("em.tif", "masks.tif", CUBE[1], CUBE[0], flags=("--axes", "YXZ"))


@case
def masks_whose_slices_were_saved_as_channels(path):
    tifffile.imwrite(path / "em.tif", IMAGES, imagej=True, metadata={"axes": "ZYX"})
    tifffile.imwrite(path / "masks.tif", MASKS, imagej=True)
    return Odd("em.tif", "masks.tif", choose=(1,))


# ---- names


def named(image, mask, **how):
    def build(path):
        folder(path / "images", IMAGES, image, "tif")
        folder(path / "masks", MASKS, mask, "tif")
        return Odd(note=f"{COUNT} pairs matched by the common part of their names", **how)

    return build


CASES["nnunet_names"] = named("case_{}_0000", "case_{}")
CASES["image_1_mask_1"] = named("image_{}", "mask_{}")
CASES["ome_names"] = named("x{}.ome", "x{}")
CASES["mask_suffix"] = named("x{}", "x{}_mask")
CASES["zeros_in_front"] = named("im{:03d}", "label_{}")
CASES["a_word_that_says_nothing"] = named("cell_{}", "cell_{}_tracing")


CASES["capitals"] = named("Cell_{}", "CELL_{}")


@case
def accents_of_a_mac(path):
    folder(path / "my images", IMAGES, "M\u00fcller {}")
    folder(path / "my masks", MASKS, "Mu\u0308ller {}")
    return Odd("my images", "my masks")


@case
def files_that_count_the_pages_from_1(path):
    tifffile.imwrite(path / "em.tif", IMAGES, photometric="minisblack")
    folder(path / "masks", MASKS, "slice_{:04d}", first=1)
    return Odd("em.tif", note="counted from 1")


@case
def files_whose_numbers_may_count_from_0_or_1(path):
    tifffile.imwrite(path / "em.tif", IMAGES, photometric="minisblack")
    folder(path / "masks", MASKS[:4], "mask_{:03d}", first=1)
    (path / "masks" / "mask_003.png").unlink()
    chosen = [0, 1, 3]
    return Odd("em.tif", labels=MASKS[chosen], slices=IMAGES[chosen], flags=("--only-pairs",), choose=(1,))


@case
def some_of_the_slices_annotated(path):
    folder(path / "images", np.concatenate([IMAGES, IMAGES[::-1]]), "z{:03d}")
    folder(path / "masks", MASKS, "z{:03d}")
    return Odd(choose=(0,))


@case
def one_side_counted_from_1(path):
    folder(path / "images", IMAGES, "image_{}")
    folder(path / "masks", MASKS, "mask_{}", first=1)
    return Odd(refused="do both sides count from the same number")


@case
def slices_and_masks_in_one_folder(path):
    folder(path / "images", IMAGES, "cell_{}")
    for i, page in enumerate(MASKS):
        Image.fromarray(page).save(path / "images" / f"cell_{i}_mask.png")
    return Odd(masks="images")


@case
def slices_named_as_masks(path):
    plain(path)
    return Odd(masks="images", refused="in a folder of their own")


@case
def one_file_of_an_ome_set(path):
    plain(path, images=False)
    said = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="48" SizeY="40" SizeZ="2"'
        ' SizeC="1" SizeT="1"><Channel ID="c" SamplesPerPixel="1"/><TiffData FirstZ="0"><UUID FileName="a.ome.tif">'
        'urn:uuid:0</UUID></TiffData><TiffData FirstZ="1"><UUID FileName="b.ome.tif">urn:uuid:1</UUID></TiffData>'
        "</Pixels></Image></OME>"
    )
    tifffile.imwrite(path / "a.ome.tif", IMAGES[0], description=said, metadata=None, photometric="minisblack")
    return Odd("a.ome.tif", refused="save it as one TIFF")


@case
def an_empty_volume(path):
    plain(path, images=False)
    np.save(path / "em.npy", IMAGES[:0])
    return Odd("em.npy", refused="holds no slice")


@case
def ambiguous_names(path):
    folder(path / "images", IMAGES, "image_{}")
    folder(path / "masks", MASKS, "mask_{}")
    (path / "masks" / "mask_1.png").rename(path / "masks" / "seg_2.png")
    return Odd(refused="do not tell which belong together.*mask_2")


@case
def other_animals(path):
    folder(path / "images", IMAGES, "mouseA_{}")
    folder(path / "masks", MASKS, "mouseB_{}")
    return Odd(refused="0 pairs of matching names")


def remedies(message: str) -> list[str]:
    return re.findall(r"`([^`]+)`", message)


def with_flag(flags: list[str], remedy: str) -> list[str]:
    """The command's flags with those of the remedy, which replace their like."""
    words = shlex.split(remedy)
    name = words[0].split("=")[0]
    kept = []
    for i, word in enumerate(flags):
        if word.split("=")[0] != name and not (i and flags[i - 1] == name):
            kept.append(word)
    return kept + words


@pytest.mark.parametrize("name", CASES)
def test_right_or_refused_with_a_remedy_that_works(name, tmp_path, capsys):
    odd, source = CASES[name](tmp_path), Source(tmp_path)
    flags, places, printed = [*SPLIT, *odd.flags], {"images": odd.images, "masks": odd.masks}, ""
    if odd.refused:
        source.refuses(odd.refused, *flags, **places)
        return
    for number, choice in enumerate([*odd.choose, None]):
        source.out = tmp_path / f"data{number}"
        try:
            parts = source.prepare(*flags, **places)
            said = ""
        except InputError as error:
            said, parts = str(error), None
        printed += capsys.readouterr().out
        if choice is None:
            break
        if choice == "note":
            flags = with_flag(flags, remedies(printed)[-1])
            continue
        assert said and "\n" not in said
        for at, remedy in enumerate(remedies(said)):
            if at != choice and remedy.startswith("--"):  # the others are flags of this program, and lead on
                try:
                    source.out = tmp_path / f"other{number}{at}"
                    source.prepare(*with_flag(flags, remedy), **places)
                except InputError as error:
                    assert str(error) != said
        capsys.readouterr()
        if isinstance(choice, str) and choice.startswith("--images"):
            places["images"] = Path(remedies(said)[int(choice.split()[1])]).relative_to(tmp_path)
        else:
            flags = with_flag(flags, choice if isinstance(choice, str) else remedies(said)[choice])
    assert parts, said
    assert odd.note in printed
    stems = [(folder, stem) for folder in parts.values() for stem in folder.stems]
    assert len(stems) == len(odd.labels)
    for i, (pairs, stem) in enumerate(stems):
        assert np.array_equal(pairs.mask(stem), odd.labels[i]), stem
        assert np.array_equal(pairs.image(stem), odd.slices[i]), stem


def test_there_are_enough_odd_inputs():
    assert len(CASES) >= 40
