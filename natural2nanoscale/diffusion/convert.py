"""Other people's ControlNets: a file as the paper's authors publish theirs, turned into a diffusers folder."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from natural2nanoscale.diffusion.original import Tensors, fill, read_safetensors, split
from natural2nanoscale.diffusion.parts import as_refusal
from natural2nanoscale.diffusion.stable_diffusion import (
    CONTROLNET,
    HINT_CHANNELS,
    STABLE_DIFFUSION_15,
    TEXT_ENCODER,
    UNET,
    VAE,
    Configs,
)
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import new_folder
from natural2nanoscale.records import open_regular

PICKLES = (".ckpt", ".pth", ".pt")
CARD = """# ControlNet converted from {file}

In diffusers' layout, float32, for Stable Diffusion 1.5. It reads three channels in [0, 1].

Assumed, as the file does not say it and nobody here has checked it: the channels are red, green, blue, in this order
(`controlnet_conditioning_channel_order: rgb`). The file does not say either which colour means what; start a training
from it with `train_controlnet.py --controlnet-init`.
"""


def convert(file: Path, configs: Configs = STABLE_DIFFUSION_15) -> ControlNetModel:
    """A file's ControlNet, in float32. Its tensors are named `control_model.*`, as its authors do, and the rest of a
    whole model may stand beside them; or the same without that prefix, or as diffusers names them, and nothing else.
    InputError unless they are exactly those of a ControlNet over `configs.unet` that reads three channels."""
    tensors = read_pickle(file) if file.suffix in PICKLES else read_safetensors(file)
    if any(name.startswith("input_hint_block.") for name in tensors):
        tensors = {CONTROLNET + name: tensor for name, tensor in tensors.items()}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**configs.unet)
        controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_CHANNELS)
    if any(name.startswith("controlnet_cond_embedding.") for name in tensors):
        fill(controlnet, lambda named, _: named, tensors, file)
        return controlnet.eval()
    remedy = "expected tensors named control_model.* or input_hint_block.*, or as diffusers names them"
    control = split(file, tensors, {CONTROLNET: "ControlNet"}, remedy, (UNET, VAE, TEXT_ENCODER))[CONTROLNET]
    hint = control.get(f"{CONTROLNET}input_hint_block.0.weight")
    if hint is not None and hint.ndim == 4 and hint.shape[1] != 3:
        raise InputError(f"{file} is a ControlNet that reads {hint.shape[1]} channels, expected one that reads 3")
    fill(controlnet, convert_controlnet_checkpoint, control, file)
    return controlnet.eval()


def read_pickle(file: Path) -> Tensors:
    """The tensors of a torch.save file, by torch's reader that builds tensors and plain containers, nothing else: the
    only place that reads a pickle. InputError, with the type's name, for a file that needs any other type."""
    expected = "expected tensors alone, as torch.save writes them, or a .safetensors file"
    with as_refusal(f"{file} cannot be read", expected), open_regular(file) as opened:
        try:
            saved = torch.load(opened, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # its text, which tells how to read the file anyway, is not passed on
            foreign = re.search(r"GLOBAL (\S+)", str(error))
            raise ValueError(f"it needs {foreign[1]}, which could run code" if foreign else "it is damaged") from None
    tensors = saved.get("state_dict", saved) if isinstance(saved, dict) else saved
    if not isinstance(tensors, dict):
        raise InputError(f"{file} holds a {type(tensors).__name__}, expected tensors by name")
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(f"{file}: {name} is of type {type(value).__name__}, expected tensors by name alone")
    return tensors


def write(controlnet: ControlNetModel, out: Path, origin: str) -> None:
    """Weights, config and card under a temporary name, then renamed: the folder is whole or not there."""
    with new_folder(out.resolve(), fresh=True) as folder:
        controlnet.save_pretrained(folder, safe_serialization=True)
        (folder / "README.md").write_text(CARD.format(file=origin), encoding="utf-8")
