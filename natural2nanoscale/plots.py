"""Curves of a run as a picture, with nothing but Pillow: what is in log.jsonl, at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from natural2nanoscale.files import save_png

INK = ("#1f5fa8", "#c4501b", "#2c7d4f", "#7a3e9d")
WIDTH, HEIGHT, MARGIN = 640, 240, 46


def plot_progress(path: Path, rows: Sequence[dict], panels: Sequence[Sequence[str]]) -> None:
    """Save one panel per group of keys, each key a curve over `step`; rows without a key are passed over."""
    panels = [[key for key in keys if sum(key in row for row in rows) > 1] for keys in panels]
    panels = [keys for keys in panels if keys]
    if not panels:
        return
    canvas = Image.new("RGB", (WIDTH, HEIGHT * len(panels)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for i, keys in enumerate(panels):
        curves = {key: [(row["step"], row[key]) for row in rows if row.get(key) is not None] for key in keys}
        _panel(draw, font, curves, top=i * HEIGHT)
    save_png(path, np.asarray(canvas))


def _panel(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, curves: dict, top: int) -> None:
    """Axes from the smallest to the largest value, a legend, and the curves."""
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    (x0, x1), (y0, y1) = (min(xs), max(xs)), (min(ys), max(ys))
    left, right, upper, lower = MARGIN, WIDTH - 12, top + 24, top + HEIGHT - 24
    draw.rectangle((left, upper, right, lower), outline="#999999")
    for text, at in ((f"{y1:.3g}", upper), (f"{y0:.3g}", lower - 12)):
        draw.text((4, at), text, "black", font)
    draw.text((left, lower + 4), f"step {x0}", "black", font)
    draw.text((right - 60, lower + 4), f"{x1}".rjust(9), "black", font)
    for n, (key, points) in enumerate(curves.items()):
        draw.text((left + 130 * n, top + 6), key, INK[n % len(INK)], font)
        line = [
            (
                left + (right - left) * (x - x0) / max(x1 - x0, 1),
                lower - (lower - upper) * (y - y0) / max(y1 - y0, 1e-9),
            )
            for x, y in points
        ]
        draw.line(line, fill=INK[n % len(INK)], width=2)
