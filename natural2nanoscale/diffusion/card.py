"""The model card that lies beside a ControlNet: what it is, and how other programs load it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.data.roots import TRANSDUCTIVE
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.parts import ADAPTED, DECODER_FILE
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.text import markdown_text

ELSEWHERE = """
## In other programs

**diffusers** loads this folder. In it, this draws a slice from `mask.png`, class ids, sides multiples of {multiple}:

```python
import numpy as np
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline
from PIL import Image

backbone, revision = {backbone!r}, {revision!r}  # a hub id, or {kind}
controlnet = ControlNetModel.from_pretrained(".")
parts = {{"controlnet": controlnet, "safety_checker": None, "revision": revision}}
pipeline = StableDiffusionControlNetPipeline.{load}(backbone, **parts)
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
colours = np.zeros((256, 3), np.uint8)  # black where there is no label
colours[:{count}] = {colors}
mask = Image.fromarray(colours[np.asarray(Image.open("mask.png"))])
mask.save("colours.png")
drawn = pipeline(
    "electron microscopy image of a cell, grey",
    image=mask,
    num_inference_steps=20,
    guidance_scale=1.0,
    controlnet_conditioning_scale={strength},
).images[0]
drawn.convert("L").save("slice.png")
```

**ComfyUI** needs one file of it: copy `diffusion_pytorch_model.safetensors` to `ComfyUI/models/controlnet/`, under a
name of its own, and choose it in the node Load ControlNet Model. Apply ControlNet takes `colours.png` from above as it
is, without a preprocessor. It knows ControlNets over Stable Diffusion, not those over the embedded backbone.
"""


def card(backbone: Backbone, train: PairFolder, settings: FineTuning, step: int, transductive: bool = False) -> str:
    """Markdown: what steers the ControlNet, over which backbone, its settings, and how other programs load it;
    transductive: as in `save_trained`."""
    known, missing = train.info.classes, []
    colors = zip(map(markdown_text, known.names), known.colors, strict=True)
    seen = f"colour-coded class masks ({', '.join(f'{name} = RGB {color}' for name, color in colors)})"
    if settings.condition == "mask+edges":
        seen += ", darkened at class boundaries and, where these are known, at the edges of the slices,"
        missing.append("the lines at boundaries and edges")
    over = f"the frozen backbone `{backbone.name}` (weights {backbone.fingerprint[:12]})"
    if settings.adapt:
        over += f", whose U-Net was adapted for {settings.adapt} steps to slices without masks (../../../{ADAPTED})"
    if settings.unlock_decoder:
        over += f", whose U-Net takes its decoder from ../{DECODER_FILE}"
    if settings.adapt or settings.unlock_decoder:
        missing.append("what the U-Net has learned")
    careful = f"\n\n{TRANSDUCTIVE}" * transductive
    facts = "\n".join(f"- {key}: {value}" for key, value in asdict(settings).items())
    name = backbone.name.partition("@")[0] if backbone.revision else backbone.name  # a hub id may name its revision
    single = Path(name).suffix == ".safetensors"
    elsewhere = ELSEWHERE.format(
        multiple=backbone.downsampling,
        backbone="natural2nanoscale/embedded" if name == "embedded" else name,
        revision=backbone.revision,
        kind="one file" if single else "a folder of diffusers",
        load="from_single_file" if single else "from_pretrained",
        count=known.count,
        colors=list(known.colors),
        strength=float(backbone.recommended.strength),
    )
    if missing:
        elsewhere += f"\nBoth lack {' and '.join(missing)}: `generate.py` draws better slices.\n"
    return (
        f"# ControlNet for {markdown_text(train.info.name)}\n\nSteered by {seen} over {over}, "
        f"fine-tuned for {step} steps on {len(train.stems)} slices.{careful}\n\n{facts}\n{elsewhere}"
    )
