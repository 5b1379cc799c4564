"""The U-Nets of a run as one ONNX file, for programs that know nothing of torch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from natural2nanoscale.data.encoders import encode_gray
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import holds_nothing, new_file
from natural2nanoscale.segmentation.evaluation import trained_seeds
from natural2nanoscale.segmentation.unet import UNet, load_unet


class Averaged(nn.Module):
    """What an ONNX file computes: grey values (B,1,H,W) float32 in 0..255, any H and W -> probabilities (B,K,H,W), the
    mean of the networks'.

    `unet.pad_to_multiple` asks in Python for the size of a slice, which a graph for all sizes cannot; here indices of
    rows and columns say the same.
    """

    def __init__(self, models: Sequence[UNet]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, grey: torch.Tensor) -> torch.Tensor:
        shape = torch._shape_as_tensor(grey)
        sides = [(shape[axis], -shape[axis] % 2 ** self.models[0].depth) for axis in (2, 3)]
        mirrored = (sides[0][1] < sides[0][0]) & (sides[1][1] < sides[1][0])  # else the last pixel is repeated
        padded = grey
        for axis, (length, more) in zip((2, 3), sides, strict=True):
            place = torch.arange(length + more)
            last = length - 1
            index = torch.where(mirrored, last - (place - last).abs(), place.clamp(max=last))
            padded = padded.index_select(axis, index.clamp(min=0))
        images = encode_gray(padded[:, 0], 1)
        total = sum(model.logits(images).softmax(1) for model in self.models) / len(self.models)
        return total[:, :, : shape[2], : shape[3]]


def export_onnx(run: Path, out: Path) -> None:
    """Write the networks of a run as `out`; its metadata say classes, grey window and pixel size as JSON.

    Raises InputError where `out` is there already or the package onnx is missing.
    """
    if not holds_nothing(out):
        raise InputError(f"{out} already exists: remove it or name another file with --out")
    try:
        import onnx
    except ImportError:
        raise InputError(
            'ONNX files are written with the package onnx, which is not installed: `pip install -e ".[full]"`'
        ) from None

    networks = [load_unet(folder) for folder in trained_seeds(run)]
    info = networks[0][1]
    described = info.to_json() | {"input": "grey values 0..255 (B,1,H,W)", "precision": "float32"}
    described |= {"output": "probabilities (B,K,H,W)", "networks": len(networks)}
    model = Averaged([model for model, _ in networks]).eval()
    side = 2 ** (info.depth + 1)
    axes = {0: "batch", 2: "height", 3: "width"}
    with new_file(out) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what the tracer takes for constant: the channels, which are
        torch.onnx.export(
            model, torch.zeros(1, 1, side, side), file, dynamo=False, opset_version=17,
            input_names=["grey"], output_names=["probabilities"], dynamic_axes={"grey": axes, "probabilities": axes},
        )  # fmt: skip
        graph = onnx.load(file)
        onnx.helper.set_model_props(graph, {"natural2nanoscale": json.dumps(described)})
        onnx.save(graph, file)
    print(f"{out}: {len(networks)} U-Net(s), {described['input']} -> {described['output']}")
    window = info.intensity_window
    if window:
        print(f"its input is what grey values {window[0]:g} to {window[1]:g} became: 0 to 255")
