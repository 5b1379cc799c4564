"""Whether the embedded backbone obeys its captions: `python tests/benchmarks/captions.py [BACKBONE]`.

Pairs of captions differ in one phrase and share all others and the noise. A line per phrase says how often the two
images differ as the phrases do, by a number that is measured on them: in dead leaves drawn by either caption (what
can be learned), then in samples at each guidance. Without any influence it would be every second time.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from diffusers import StableDiffusionPipeline

from natural2nanoscale.diffusion.backbone import EMBEDDED
from natural2nanoscale.seeds import generator_for
from natural2nanoscale.workshop.captions import text_to_image
from natural2nanoscale.workshop.dead_leaves import render
from natural2nanoscale.workshop.scenes import caption, draw_scene

HEIGHT, WIDTH, BATCH = 128, 224, 8
GUIDANCE = (1.0, 3.0, 6.0)


def grey(image: np.ndarray) -> np.ndarray:
    return image.mean(axis=2)


def roughness(image: np.ndarray) -> float:
    """Mean difference of neighbours, relative to the contrast."""
    levels = grey(image)
    return (np.abs(np.diff(levels, axis=0)).mean() + np.abs(np.diff(levels, axis=1)).mean()) / levels.std()


def edge_rows(image: np.ndarray) -> float:
    """How much brighter the upper and lower tenth is than the middle."""
    rows = grey(image).mean(axis=1)
    return (
        np.concatenate([rows[: HEIGHT // 10], rows[-HEIGHT // 10 :]]).mean() - rows[HEIGHT // 3 : -HEIGHT // 3].mean()
    )


# field of the scene, phrase with the smaller number, phrase with the larger one, the number
PHRASES: tuple[tuple[str, str, str, Callable[[np.ndarray], float]], ...] = (
    ("tone", "dark", "bright", lambda image: grey(image).mean()),
    ("colour", "grey", "coloured", lambda image: image.std(axis=2).mean()),
    ("contrast", "low contrast", "high contrast", lambda image: grey(image).std()),
    ("scale", "coarse", "fine", roughness),
    ("focus", "blurred", "sharp", roughness),
    ("noise", "clean", "noisy", lambda image: np.abs(np.diff(grey(image), n=2, axis=1)).mean()),
    ("horizon", "dark bands above and below", "bright bands above and below", edge_rows),
)


def sampled(pipeline: StableDiffusionPipeline, captions: list[str], guidance: float) -> list[np.ndarray]:
    """An image (H,W,3) in [0,1] per caption; the noise depends on its place in the list alone."""
    images = []
    for first in range(0, len(captions), BATCH):
        chosen = captions[first : first + BATCH]
        generators = [generator_for("captions", first + i) for i in range(len(chosen))]
        images += list(
            pipeline(
                chosen, HEIGHT, WIDTH, num_inference_steps=20, guidance_scale=guidance, generator=generators,
                output_type="np",
            ).images
        )  # fmt: skip
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbone", nargs="?", type=Path, default=EMBEDDED)
    parser.add_argument("--pairs", type=int, default=24, help="of images for every phrase")
    args = parser.parse_args()
    pipeline = text_to_image(args.backbone)
    print(f"| phrase | dead leaves | {' | '.join(f'guidance {guidance:g}' for guidance in GUIDANCE)} |")
    print("|---|--:|" + "--:|" * len(GUIDANCE))
    for field, small, large, number in PHRASES:
        scenes = [draw_scene(np.random.default_rng([7, i])) for i in range(args.pairs)]
        sides = [[replace(scene, **{field: phrase}) for scene in scenes] for phrase in (small, large)]
        drawn = [
            [render(scene, np.random.default_rng(i), HEIGHT, WIDTH) / 255 for i, scene in enumerate(side)]
            for side in sides
        ]
        makers = [drawn]
        for guidance in GUIDANCE:
            makers.append([sampled(pipeline, [caption(scene) for scene in side], guidance) for side in sides])
        shares = [np.mean([number(b) > number(a) for a, b in zip(*pair, strict=True)]) for pair in makers]
        print(f"| {small} / {large} | {' | '.join(f'{100 * share:.0f} %' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
