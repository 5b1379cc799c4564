"""What a dead-leaves image shows, and the caption that says so: the words that the embedded backbone learns."""

from dataclasses import dataclass

import numpy as np

SHAPES = ("round", "long", "angular", "wobbly", "mixed")
TEXTURES = ("smooth", "cloudy", "granular", "speckled", "veined", "striped", "mixed")
HORIZONS = ("", "sky above", "ground below", "wall left", "wall right", "bands above and below")


@dataclass(frozen=True)
class Scene:
    """How one image is drawn; every field is a phrase of its caption, "" where there is nothing to say."""

    tone: str  # "dark", "mid" or "bright": the mean of the leaves' grey
    colour: str  # "grey" or "coloured"
    contrast: str  # "low contrast" or "high contrast": the spread of the leaves' grey
    count: str  # "few" leaves leave background between them, "many" cover it
    scale: str  # "fine" or "coarse": the range of radii
    shape: str  # one of SHAPES
    texture: str  # one of TEXTURES
    rims: str  # "with rims": a dark or bright line along the edge of the leaves
    fibres: str  # "with fibres": thin curved threads among the leaves
    focus: str  # "sharp" or "blurred"
    noise: str  # "clean" or "noisy"
    horizon: str  # "" or e.g. "bright sky above": a flat region with a ragged border, in front of the leaves


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draws the phrases of one image."""
    pick = lambda words, p=None: str(rng.choice(words, p=p))  # noqa: E731
    horizon = pick(HORIZONS, (0.55, 0.1, 0.1, 0.05, 0.05, 0.15))
    return Scene(
        tone=pick(("dark", "mid", "bright")),
        colour=pick(("grey", "coloured"), (0.65, 0.35)),
        contrast=pick(("low contrast", "high contrast"), (0.4, 0.6)),
        count=pick(("few", "many"), (0.35, 0.65)),
        scale=pick(("fine", "coarse")),
        shape=pick(SHAPES),
        texture=pick(TEXTURES, (0.16, 0.12, 0.2, 0.12, 0.12, 0.08, 0.2)),
        rims=pick(("with rims", ""), (0.4, 0.6)),
        fibres=pick(("with fibres", ""), (0.3, 0.7)),
        focus=pick(("sharp", "blurred"), (0.75, 0.25)),
        noise=pick(("clean", "noisy")),
        horizon=f"{pick(('bright', 'dark'), (0.6, 0.4))} {horizon}" if horizon else "",
    )


def caption(scene: Scene) -> str:
    """States the scene in words, e.g. "a dark grey low contrast image of many fine round granular shapes with rims,
    sharp and noisy, bright sky above"."""
    extras = " and ".join(part for part in (scene.rims, scene.fibres) if part)
    text = (
        f"a {scene.tone} {scene.colour} {scene.contrast} image of {scene.count} {scene.scale} {scene.shape} "
        f"{scene.texture} shapes {extras}".rstrip()
        + f", {scene.focus} and {scene.noise}"
    )
    return f"{text}, {scene.horizon}" if scene.horizon else text


def caption_words() -> tuple[str, ...]:
    """All words the captions are made of: the vocabulary of the text encoder."""
    rng, words = np.random.default_rng(0), set()
    for _ in range(2000):
        words.update(caption(draw_scene(rng)).replace(",", "").split())
    return tuple(sorted(words))
