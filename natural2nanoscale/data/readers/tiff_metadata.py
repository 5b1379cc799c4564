"""What a TIFF file says of its axes and of the size of its pixels."""

from __future__ import annotations

from natural2nanoscale.data.readers.base import nanometres, need


def kind_of(page) -> str:
    """What all pages of a stack have in common."""
    colours = getattr(page.photometric, "name", page.photometric)
    table = "" if page.colormap is None else f" {hash(page.colormap.tobytes()) & 0xFFFF:04x}"
    samples = f" x{page.samplesperpixel}" if page.samplesperpixel > 1 else ""
    return f"{page.imagewidth}x{page.imagelength}{samples} {page.dtype} {colours}{table}"


def named_axes(axes: str) -> str:
    """tifffile's axes, each with a letter of its own."""
    spare, named = iter("ABDEFGHJKLMNOPRU"), ""
    for name in axes:
        named += name if name not in named and name not in "Q" else next(spare)
    return named


def pixel_size(tif, page) -> float | None:
    """Nanometres per pixel, where the file says it."""
    if tif.is_ome and tif.ome_metadata:
        pixels = need("tifffile", "").xml2dict(tif.ome_metadata)["OME"]["Image"]
        pixels = (pixels[0] if isinstance(pixels, list) else pixels)["Pixels"]
        return nanometres(float(pixels.get("PhysicalSizeX", 0)), pixels.get("PhysicalSizeXUnit", "µm"))
    if tif.is_fei and tif.fei_metadata:
        return nanometres(float(tif.fei_metadata.get("Scan", {}).get("PixelWidth", 0)), "m")
    if tif.is_sem and tif.sem_metadata and "ap_image_pixel_size" in tif.sem_metadata:
        _name, value, unit = tif.sem_metadata["ap_image_pixel_size"][:3]
        return nanometres(float(value), unit)
    resolution = page.tags.valueof(282)
    if not resolution or not resolution[0]:
        return None
    length = resolution[1] / resolution[0]
    if tif.is_imagej and tif.imagej_metadata:
        return nanometres(length, tif.imagej_metadata.get("unit", ""))
    return nanometres(length, "cm") if page.tags.valueof(296, 2) == 3 else None
