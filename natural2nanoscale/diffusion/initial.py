"""A training may start from a ControlNet that exists already, a run of ours or somebody else's."""

from __future__ import annotations

import json
from pathlib import Path

from diffusers import ControlNetModel

from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.controlnet import make_controlnet
from natural2nanoscale.diffusion.saving import DECODER_FILE, find_checkpoint
from natural2nanoscale.diffusion.weights import load_module
from natural2nanoscale.errors import InputError


def load_initial(folder: Path, backbone: Backbone) -> ControlNetModel:
    """The ControlNet of a diffusers folder, or the newest one of a run folder, as make_controlnet would give it.

    Raises InputError unless its tensors and its architecture are exactly those that the backbone needs.
    """
    if (folder / "checkpoints").is_dir():
        checkpoint = find_checkpoint(folder)
        if (checkpoint / DECODER_FILE).is_file():
            raise InputError(
                f"{folder} was trained with --unlock-decoder: its ControlNet belongs to a decoder that a new run would "
                "not have, expected a run over the frozen backbone, or go on in that one with --resume"
            )
        folder = checkpoint / "controlnet"
    saved = load_module(ControlNetModel, folder)  # weights against their own config
    controlnet = make_controlnet(backbone)
    for key, needed in controlnet.config.items():  # and this config against the backbone
        found = saved.config.get(key)
        if not key.startswith("_") and json.dumps(found or None) != json.dumps(needed or None):
            raise InputError(
                f"the ControlNet in {folder} has {key} {found} but the backbone {backbone.name} needs {needed}: "
                "expected one for this backbone"
            )
    controlnet.load_state_dict(saved.state_dict())
    return controlnet
