"""What a backbone makes of captions alone: the pipeline that draws from them, and the sheet on its card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from diffusers import DDIMScheduler, StableDiffusionPipeline

from natural2nanoscale.data.sheets import sheet
from natural2nanoscale.seeds import generator_for

SHEET_GUIDANCE = (1.0, 3.0, 6.0)
SHEET_CAPTIONS = (  # one that the others change in one respect
    "a mid grey high contrast image of many coarse round smooth shapes, sharp and clean",
    "a dark grey high contrast image of many coarse round smooth shapes, sharp and clean",
    "a bright grey high contrast image of many coarse round smooth shapes, sharp and clean",
    "a mid grey low contrast image of many coarse round smooth shapes, sharp and clean",
    "a mid coloured high contrast image of many coarse round smooth shapes, sharp and clean",
    "a mid grey high contrast image of many fine round granular shapes, sharp and clean",
)


def text_to_image(backbone: Path) -> StableDiffusionPipeline:
    """What draws from captions alone: diffusers' own pipeline over a backbone folder, in DDIM steps."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        backbone, scheduler=DDIMScheduler.from_pretrained(backbone / "scheduler"), local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def caption_sheet(backbone: Path, path: Path) -> None:
    """Save what the backbone makes of a few captions, unguided and guided: a row each, from the same noise."""
    pipeline, columns = text_to_image(backbone), []
    for guidance in SHEET_GUIDANCE:
        generators = [generator_for("caption sheet") for _ in SHEET_CAPTIONS]
        settings = {"height": 128, "width": 224, "num_inference_steps": 30, "guidance_scale": guidance}
        columns.append(pipeline(list(SHEET_CAPTIONS), generator=generators, output_type="np", **settings).images)
    rows = [[(255 * column[i]).round().astype(np.uint8) for column in columns] for i in range(len(SHEET_CAPTIONS))]
    sheet(rows, path, [f"guidance {guidance:g}" for guidance in SHEET_GUIDANCE], SHEET_CAPTIONS)
