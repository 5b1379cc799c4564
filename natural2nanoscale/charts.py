"""Charts: a study's as SVG, by hand, and the curves of a run as a picture, with nothing but Pillow.

The SVGs are as wide as a telephone, so that their text can be read on one; colours come from the page.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from natural2nanoscale.files import save_png

COLOURS = 9  # of the curves of one chart, more are dashed; a study's report.css has them
WIDTH, MARGIN = 360, 14  # in units of the viewBox, which are pixels on a narrow screen
LETTER, LEADING = 7, 14  # of a label: a letter's width, rather too much, and from one line to the next


def svg(height: float, parts: Sequence[str], said: str) -> str:
    """The drawing with its frame; `said` is what a screen reader says."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(said, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def label(x: float, y: float, words: str, kind: str = "") -> tuple[list[str], int]:
    """Words from x on in as many lines as they take, the first at y, and how many these are."""
    folded = textwrap.wrap(words, int((WIDTH - MARGIN - x) / LETTER), break_on_hyphens=False)
    return [text(x, y + LEADING * n, part, kind=kind) for n, part in enumerate(folded)], len(folded)


def line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{kind}"/>'


def dot(x: float, y: float, radius: float, kind: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind}"/>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover low..high in about `count` steps of 1, 2 or 5 times a power of ten."""
    span = max(high - low, 1e-3)
    power = 10 ** math.floor(math.log10(span / count))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * count >= span)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, max(last, first + 1) + 1)]


def bottom_axis(low: float, high: float, height: float, title: str) -> tuple[list[str], Callable[[float], float]]:
    """Grid, numbers and title of a horizontal axis, and the function from values to x."""
    marks = ticks(low, high)
    left, right = MARGIN, WIDTH - MARGIN

    def place(value: float) -> float:
        return left + (right - left) * (value - marks[0]) / (marks[-1] - marks[0])

    parts = [line(place(mark), 4, place(mark), height - 34, "grid") for mark in marks]
    parts += [text(place(mark), height - 20, f"{mark:g}", "middle", "small") for mark in marks]
    return [*parts, text(WIDTH / 2, height - 4, title, "middle", "small")], place


def interval_plot(rows: Sequence[tuple[str, float, Sequence[tuple[float, float] | None]]], title: str) -> str:
    """One line per difference: its mean as a dot, its intervals as bars (the first one thick), and zero."""
    labels, below = [], 17  # where the next label begins
    for name, _, _ in rows:
        words, lines = label(MARGIN, below, name, "halo")
        labels.append((words, below + LEADING * lines - 3))  # and where its difference lies
        below += 24 + LEADING * lines
    height = below + 27
    ends = [end for _, mean, bars in rows for end in (0.0, mean, *(e for bar in bars if bar for e in bar))]
    parts, place = bottom_axis(min(ends), max(ends), height, title)
    parts.append(line(place(0), 4, place(0), height - 34, "zero"))
    for (words, y), (_, mean, bars) in zip(labels, rows, strict=True):
        parts += words
        for n, bar in enumerate(bars):
            if bar:
                parts.append(line(place(bar[0]), y + 7 * n, place(bar[1]), y + 7 * n, f"bar bar{n}"))
        parts.append(dot(place(mean), y, 5, "mean"))
    return svg(height, parts, title)


def curves(
    series: Sequence[tuple[str, Sequence[tuple[float, float, float | None]]]],
    x_title: str,
    y_title: str,
    level: tuple[str, float] | None = None,
    logarithmic: bool = False,
) -> str:
    """Curves of (x, mean, standard deviation or None) with bars of one deviation; `level` is a dashed line."""
    scale = (lambda x: math.log2(x)) if logarithmic else (lambda x: x)
    named = [*series, *([(level[0], [])] if level else [])]
    left, right = 40, WIDTH - MARGIN
    legend, below = [], 14  # where the next name begins
    for name, _ in named:
        words, lines = label(left + 30, below, name)
        legend.append((words, below))
        below += 3 + LEADING * lines
    top, bottom = below - 2, below + 286
    points = [point for _, row in series for point in row]
    xs = sorted({x for x, _, _ in points})
    ends = [mean + sign * (std or 0) for _, mean, std in points for sign in (-1, 1)] + ([level[1]] if level else [])
    marks = ticks(min(ends), max(ends))
    x0, x1 = (scale(xs[0]), scale(xs[-1])) if len(xs) > 1 else (scale(xs[0]) - 1, scale(xs[0]) + 1)

    def at(x: float, y: float) -> tuple[float, float]:
        across = left + 12 + (right - left - 24) * (scale(x) - x0) / (x1 - x0)
        return across, bottom - (bottom - top) * (y - marks[0]) / (marks[-1] - marks[0])

    parts = []
    for mark in marks:
        y = at(xs[0], mark)[1]
        parts += [line(left, y, right, y, "grid"), text(left - 6, y + 4, f"{mark:g}", "end", "small")]
    taken = -math.inf
    for x in xs:
        across = at(x, marks[0])[0]
        parts.append(line(across, bottom, across, bottom + 4, "rule"))
        if across - taken > 40:  # numbers that would touch are left out
            parts.append(text(across, bottom + 18, f"{x:,.0f}", "middle", "small"))
            taken = across
    parts.append(text((left + right) / 2, bottom + 34, f"{x_title}; upright: {y_title}", "middle", "small"))
    if level:
        y = at(xs[0], level[1])[1]
        parts.append(line(left, y, right, y, "level"))
    for n, ((words, y), (_, row)) in enumerate(zip(legend, named, strict=True)):
        kind = f"s{n % COLOURS}{' again' * (n >= COLOURS)}" if row else "level"
        parts += [line(left, y - 4, left + 22, y - 4, f"curve {kind}"), *words]
        spread = any(std for _, _, std in row)
        offset = 3 * (n - (len(series) - 1) / 2) * spread  # bars of different curves stand side by side
        placed = [(at(x, mean), mean, std, x) for x, mean, std in sorted(row)]
        path = " ".join(f"{across + offset:.1f},{down:.1f}" for (across, down), _, _, _ in placed)
        parts.append(f'<polyline points="{path}" class="curve {kind}"/>' if row else "")
        for (across, down), mean, std, x in placed:
            if std:
                ends_y = at(x, mean - std)[1], at(x, mean + std)[1]
                parts.append(line(across + offset, ends_y[0], across + offset, ends_y[1], f"spread {kind}"))
            parts.append(dot(across + offset, down, 4, f"point {kind}"))
    return svg(bottom + 40, parts, f"{y_title} against {x_title}")


# --------------------------------------------------------------------------------------- a run's picture

INK = ("#1f5fa8", "#c4501b", "#2c7d4f", "#7a3e9d")
PANEL_WIDTH, PANEL_HEIGHT, PANEL_MARGIN = 640, 240, 46  # of a run's picture, in pixels


def plot_progress(path: Path, rows: Sequence[dict], panels: Sequence[Sequence[str]]) -> None:
    """Save one panel per group of keys, each key a curve over `step`; rows without a key are passed over."""
    panels = [[key for key in keys if sum(key in row for row in rows) > 1] for keys in panels]
    panels = [keys for keys in panels if keys]
    if not panels:
        return
    canvas = Image.new("RGB", (PANEL_WIDTH, PANEL_HEIGHT * len(panels)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for i, keys in enumerate(panels):
        known = [row for row in rows if "step" in row]
        curves = {key: [(row["step"], row[key]) for row in known if row.get(key) is not None] for key in keys}
        _panel(draw, font, curves, top=i * PANEL_HEIGHT)
    save_png(path, np.asarray(canvas))


def _panel(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, curves: dict, top: int) -> None:
    """Axes from the smallest to the largest value, a legend, and the curves."""
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    (x0, x1), (y0, y1) = (min(xs), max(xs)), (min(ys), max(ys))
    left, right, upper, lower = PANEL_MARGIN, PANEL_WIDTH - 12, top + 24, top + PANEL_HEIGHT - 24
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
