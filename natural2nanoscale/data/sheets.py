"""Contact sheets: rows of pictures with headings, and slices beside their masks and overlays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from natural2nanoscale.data.classes import Classes, color_table
from natural2nanoscale.data.folders import PairFolder, evenly_spaced
from natural2nanoscale.files import save_png
from natural2nanoscale.text import printable

LINE = 18  # pixels of a line of text
MARGIN = 4


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    path: Path,
    titles: Sequence[str] = (),
    labels: Sequence[str] = (),
    width: int = 256,
) -> None:
    """Save a PNG of rows of uint8 pictures, (H,W) grey or (H,W,3) RGB, each scaled down to `width` if wider.

    titles: one heading per column; labels: one line above each row. Greys are averaged, colours are not:
    a colour stands for a class.
    """
    cells = [[shrink(picture, width) for picture in row] for row in rows]
    heights = [max(cell.height for cell in row) for row in cells]
    label_height = LINE if labels else 0
    title_height = LINE if titles else 0
    columns = max(len(row) for row in cells)
    widths = [max(row[i].width for row in cells if i < len(row)) for i in range(columns)]
    size = (
        sum(widths) + MARGIN * (columns + 1),
        title_height + sum(height + label_height + MARGIN for height in heights) + MARGIN,
    )
    canvas = Image.new("RGB", size, (224, 224, 224))  # no class has this colour
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    lefts = [MARGIN + sum(widths[:i]) + MARGIN * i for i in range(columns)]
    for left, title in zip(lefts, titles, strict=False):
        draw.text((left, 1), title, "black", font)
    top = title_height + MARGIN
    for i, row in enumerate(cells):
        if labels:
            draw.text((MARGIN, top - 1), printable(labels[i]), "black", font)
        for left, cell in zip(lefts, row, strict=False):
            canvas.paste(cell, (left, top + label_height))
        top += heights[i] + label_height + MARGIN
    save_png(path, np.asarray(canvas))


def shrink(picture: np.ndarray, width: int) -> Image.Image:
    """RGB picture of at most `width` pixels' width."""
    image = Image.fromarray(np.ascontiguousarray(picture))
    if image.width > width:
        size = width, max(1, round(image.height * width / image.width))
        image = image.resize(size, Image.Resampling.BOX if picture.ndim == 2 else Image.Resampling.NEAREST)
    return image.convert("RGB")


def colored(mask: np.ndarray, classes: Classes) -> np.ndarray:
    """Class ids (H,W) -> colours (H,W,3) uint8; ignored pixels are black."""
    return color_table(classes.colors)[mask]


def overlay(image: np.ndarray, mask: np.ndarray, classes: Classes) -> np.ndarray:
    """The slice (H,W) tinted with its classes' colours, (H,W,3) uint8; ignored pixels are darkened."""
    return (0.65 * image[..., None] + 0.35 * colored(mask, classes)).round().astype(np.uint8)


def contact_sheet(folders: dict[str, PairFolder], path: Path, per_part: int = 8) -> None:
    """Save image | mask | overlay of up to `per_part` slices of every part, evenly spaced, two to a row.

    Masks may be None: then it is the images alone, one to a row.
    """
    rows, labels = [], []
    for part, folder in folders.items():
        picks, classes = evenly_spaced(folder.stems, per_part), folder.info.classes
        for stem in picks:
            image, mask = folder.image(stem), folder.mask(stem)
            cells = [image] if mask is None else [image, colored(mask, classes), overlay(image, mask, classes)]
            if mask is not None and picks.index(stem) % 2:
                rows[-1] += cells
                labels[-1] += f" | {stem}"
            else:
                rows.append(cells)
                labels.append(f"{part}: {stem}")
    sheet(rows, path, titles=(["image", "mask", "overlay"] * 2)[: len(rows[0])], labels=labels)
