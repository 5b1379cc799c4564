"""Dead-leaves images with captions: occluding textured shapes with a power law of sizes, the classical statistical
model of natural images (Lee, Mumford & Huang 2001; Baradad et al. 2021). No EM image takes part."""

import numpy as np

from natural2nanoscale.phantom.textures import blur
from natural2nanoscale.seeds import seed_for
from natural2nanoscale.workshop.scenes import SHAPES, TEXTURES, Scene, caption, draw_scene


def _spectral_field(rng: np.random.Generator, size: int, amplitude: np.ndarray) -> np.ndarray:
    """A periodic Gaussian random field (size, size) with the given spectral amplitude, zero mean, unit variance."""
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size), dtype=np.float32)) * amplitude, s=(size, size))
    field -= field.mean()
    return (field / (field.std() + 1e-6)).astype(np.float32)


def _texture(rng: np.random.Generator, size: int, kind: str) -> np.ndarray:
    """One periodic texture (size, size) of about unit variance; lengths in pixels."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    f = np.hypot(fy, fx) + 1e-6  # cycles per pixel
    if kind == "smooth":
        return _spectral_field(rng, size, np.exp(-((f * rng.uniform(15, 60)) ** 2)))
    if kind == "cloudy":
        return _spectral_field(rng, size, (f + 1 / size) ** -rng.uniform(1.0, 1.7))
    if kind == "striped":  # long in one direction, short in the other
        angle, width = rng.uniform(0, np.pi), rng.uniform(1.5, 6)
        along, across = fx * np.cos(angle) + fy * np.sin(angle), -fx * np.sin(angle) + fy * np.cos(angle)
        return _spectral_field(rng, size, np.exp(-((along * width * 12) ** 2) - ((across * width) ** 2)))
    grain = rng.uniform(1.2, 6.0)  # scale of granules, specks and vein meshes
    band = _spectral_field(rng, size, f * grain * np.exp(-((f * grain) ** 2) * 4))
    if kind == "granular":
        return band
    if kind == "speckled":  # sparse bright or dark dots
        specks = np.clip(band - rng.uniform(1.2, 2.0), 0, None)
        return (rng.choice((-1, 1)) * specks / (specks.std() + 1e-6)).clip(-6, 6).astype(np.float32)
    mesh = _spectral_field(rng, size, np.exp(-((f * grain * 3) ** 2) * 2))  # "veined": its zero level is a line mesh
    gradient = np.hypot(*np.gradient(mesh)) + 1e-3
    lines = np.exp(-((mesh / gradient / rng.uniform(0.7, 1.6)) ** 2))  # about constant width in pixels
    return (rng.choice((-1, 1)) * (lines - lines.mean()) / (lines.std() + 1e-6)).astype(np.float32)


def _radii(rng: np.random.Generator, smallest: float, largest: float, area: float) -> np.ndarray:
    """Radii with density r^-3 in [smallest, largest], as many as cover `area` pixels once on average."""
    mean_area = 2 * np.pi * np.log(largest / smallest) / (smallest**-2 - largest**-2)
    count = max(int(area / mean_area), 3)
    return (smallest**-2 - rng.random(count) * (smallest**-2 - largest**-2)) ** -0.5


def _outline(rng: np.random.Generator, theta: np.ndarray, shape: str) -> np.ndarray:
    """Relative radius in (0, 1] of each leaf's edge at the angles theta (n, h, w); one random outline per leaf."""
    n = len(theta)
    column = lambda low, high: rng.uniform(low, high, (n, 1, 1)).astype(np.float32)  # noqa: E731
    theta = theta + column(0, 2 * np.pi)
    if shape == "angular":
        sector = 2 * np.pi / rng.integers(3, 7, (n, 1, 1))
        return (np.cos(sector / 2) / np.cos(theta % sector - sector / 2)).astype(np.float32)
    if shape == "wobbly":
        waves = sum(column(0, 0.5 / k**0.7) * np.cos(k * theta + column(0, 2 * np.pi)) for k in (2, 3, 4, 6, 9))
        return np.clip((1 + waves) / 1.7, 0.15, 1.0)
    aspect = column(1, 1.5) if shape == "round" else column(2.5, 9)
    return 1 / np.sqrt(np.cos(theta) ** 2 + (aspect * np.sin(theta)) ** 2)


def _stamps(rng: np.random.Generator, radii: np.ndarray, shape: str, rim: float) -> list[np.ndarray]:
    """Label stamps, odd square uint8: 0 outside, 1 inside, 2 on the rim (`rim` pixels wide; 0 for none). For the shape
    "thread" only a thin arc of the circle is set. Leaves of similar size are computed together."""
    stamps: list[np.ndarray] = [None] * len(radii)
    half_sizes = np.ceil(2 ** (np.ceil(2 * np.log2(radii + 1)) / 2)).astype(int)
    for half in np.unique(half_sizes):
        index = np.flatnonzero(half_sizes == half)
        axis = np.arange(-half, half + 1, dtype=np.float32)
        n = len(index)
        dy = axis[None, :, None] + rng.uniform(-0.5, 0.5, (n, 1, 1)).astype(np.float32)
        dx = axis[None, None, :] + rng.uniform(-0.5, 0.5, (n, 1, 1)).astype(np.float32)
        r = radii[index].astype(np.float32)[:, None, None]
        distance, theta = np.hypot(dy, dx), np.arctan2(dy, dx)
        if shape == "thread":
            start, length = rng.uniform(0, 2 * np.pi, (n, 1, 1)), rng.uniform(0.5, 3.5, (n, 1, 1))
            width = rng.uniform(0.5, 1.6, (n, 1, 1))
            bend = 1 + 0.06 * np.cos(3 * theta + start) + 0.03 * np.cos(7 * theta + 2 * start)
            on = (np.abs(distance - (r - 4) * bend) < width) & ((theta - start) % (2 * np.pi) < length)
            labels = on.astype(np.uint8)
        else:
            edge = r * _outline(rng, theta, shape)
            labels = (distance < edge).astype(np.uint8)
            labels += (labels == 1) & (distance > edge - rim) & (rim > 0)
        for i, label in zip(index, labels, strict=True):
            stamps[i] = label
    return stamps


def _paint(ids: np.ndarray, stamps: list[np.ndarray], rng: np.random.Generator, first_id: int) -> None:
    """Paints the stamps in random order over ids (height, width), centres uniform over the canvas: leaf k gets the
    ids first_id + 2k (inside) and first_id + 2k + 1 (rim)."""
    height, width = ids.shape
    centres = np.stack([rng.integers(0, side, len(stamps)) for side in ids.shape], 1)
    for k in rng.permutation(len(stamps)):
        half = len(stamps[k]) // 2
        y, x = centres[k] - half
        y0, x0, y1, x1 = max(y, 0), max(x, 0), min(y + 2 * half + 1, height), min(x + 2 * half + 1, width)
        stamp, window = stamps[k][y0 - y : y1 - y, x0 - x : x1 - x], ids[y0:y1, x0:x1]
        np.copyto(window, first_id - 1 + 2 * k + stamp, where=stamp > 0)


def _horizon(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Signed distance (height, width) to a ragged border across the image, positive above it."""
    frequency = np.fft.rfftfreq(width) + 1 / width
    waves = np.fft.irfft(np.fft.rfft(rng.standard_normal(width)) * frequency ** -rng.uniform(0.6, 1.8), n=width)
    level = height * (rng.uniform(0.08, 0.5) + rng.uniform(0.005, 0.06) * waves / waves.std())
    ragged = 3 * rng.uniform(0, 1.5) * _texture(rng, max(height, width), "granular")  # islands and overhangs
    return (level[None, :] - np.arange(height)[:, None] + ragged[:height, :width]).astype(np.float32)


def render(scene: Scene, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Draws the scene: uint8 (height, width, 3), channels equal where the scene is grey."""
    side, size = min(height, width), max(height, width)
    # Leaves: an id per pixel, 0 the background, then two per leaf (inside, rim).
    smallest, largest = (1.7, 0.16 * side) if scene.scale == "fine" else (3.5, 0.45 * side)
    radii = _radii(rng, smallest, largest, area=height * width * (0.6 if scene.count == "few" else 2.5))
    rim = rng.uniform(1.0, 2.6) if scene.rims else 0.0
    shapes = SHAPES[:-1] if scene.shape == "mixed" else (scene.shape,)
    stamps = [s for part, shape in zip(np.array_split(radii, len(shapes)), shapes, strict=True)
              for s in _stamps(rng, part, shape, rim)]  # fmt: skip
    ids = np.zeros((height, width), np.int32)
    _paint(ids, stamps, rng, first_id=1)
    if scene.fibres:
        threads = _stamps(rng, rng.uniform(0.05, 0.4, rng.integers(3, 15)) * side + 4, "thread", 0.0)
        _paint(ids, threads, rng, first_id=1 + 2 * len(stamps))
        stamps += threads
    count = 1 + 2 * len(stamps)

    # Colours: grey around the tone, some leaves nearly black or white, chroma around few hues.
    tone = {"dark": (0.06, 0.35), "mid": (0.35, 0.65), "bright": (0.65, 0.95)}[scene.tone]
    spread = rng.uniform(0.02, 0.08) if scene.contrast == "low contrast" else rng.uniform(0.12, 0.3)
    grey = rng.uniform(*tone) + spread * rng.standard_normal(count)
    extreme = rng.random(count) < (0.0 if scene.contrast == "low contrast" else 0.06)
    grey[extreme] = rng.choice((rng.uniform(0, 0.12), rng.uniform(0.85, 1)), extreme.sum())
    grey[2::2] = (grey[1::2] + rng.normal(0, 0.02, count // 2)) + rng.choice((-1, -1, 1)) * rng.uniform(0.1, 0.4)
    colour = np.repeat(grey[:, None], 3, 1)
    if scene.colour == "coloured":
        hues = rng.normal(0, rng.uniform(0.05, 0.2), (rng.integers(1, 5), 3))
        colour += hues[rng.integers(0, len(hues), count)] + rng.normal(0, 0.03, (count, 3))

    # Textures: a few periodic fields, each leaf sees one of them through its own window, and a shading gradient.
    kinds = TEXTURES[:-1] if scene.texture == "mixed" else (scene.texture, "smooth")
    textures = np.stack([_texture(rng, size, kind) for kind in kinds])
    kind = rng.choice(len(kinds), count, p=None if scene.texture == "mixed" else (0.85, 0.15))
    strength = rng.uniform(0, 0.03, count) if scene.texture == "smooth" else rng.uniform(0.01, 0.12, count)
    strength[rng.random(count) < 0.15] = 0
    offset, slope = rng.integers(0, size, (2, count)), rng.normal(0, 0.06, (2, count))
    y, x = np.mgrid[:height, :width]
    shade = textures[kind[ids], (y + offset[0][ids]) % size, (x + offset[1][ids]) % size] * strength[ids]
    shade += slope[0][ids] * (y / size - 0.5) + slope[1][ids] * (x / size - 0.5)
    shade += rng.uniform(0, 0.05) * _texture(rng, size, "smooth")[:height, :width]  # uneven light
    image = (colour[ids] + shade[..., None]).astype(np.float32)

    # A flat region in front of everything, with a ragged border and perhaps a line along it.
    if scene.horizon:
        place = scene.horizon.split()[-1]
        across = (width, height) if place in ("left", "right") else (height, width)
        inside = _horizon(rng, *across)  # pixels into the flat region
        if scene.horizon.endswith("above and below"):
            inside = np.maximum(inside, _horizon(rng, *across)[::-1])
        elif place != "above":
            inside = np.rot90(inside, {"left": 1, "below": 2, "right": 3}[place])
        flat = rng.uniform(0.85, 1.02) if scene.horizon.startswith("bright") else rng.uniform(-0.02, 0.12)
        if rng.random() < 0.5:
            image[(inside > -rng.uniform(1, 4)) & (inside <= 0)] += rng.choice((-1, 1)) * rng.uniform(0.1, 0.4)
        image[inside > 0] = (flat + rng.uniform(0, 0.02) * textures[0][:height, :width])[inside > 0][:, None]

    # The camera: blur, then noise, then saturation.
    sigma = rng.uniform(0.3, 0.65) if scene.focus == "sharp" else rng.uniform(0.9, 2.2)
    image = blur(image, sigma, "reflect")
    noise = rng.standard_normal(image.shape if scene.colour == "coloured" else (height, width, 1), dtype=np.float32)
    image += noise * (rng.uniform(0, 0.012) if scene.noise == "clean" else rng.uniform(0.025, 0.11))
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def draw(seed: int, index: int, height: int, width: int) -> tuple[np.ndarray, str]:
    """Image number `index` of the stream `seed`: uint8 (height, width, 3) and its caption."""
    rng = np.random.default_rng(seed_for(seed, "dead leaves", index, height, width))
    scene = draw_scene(rng)
    return render(scene, rng, height, width), caption(scene)
