"""A U-Net that has learned slices without masks: those slices, and the weights beside the ControlNet over it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from natural2nanoscale.data.folders import ImageFolder, PairFolder
from natural2nanoscale.diffusion.backbone import Backbone, weights_hash
from natural2nanoscale.diffusion.controlnet import part_state, unlock
from natural2nanoscale.errors import InputError
from natural2nanoscale.records import read_config
from natural2nanoscale.runs import RunFolder

ADAPTED = "adapted"  # within a ControlNet's run folder: the run that adapted its backbone
WEIGHTS = "unet_part.safetensors"  # in that run's checkpoints


class WithoutMasks(PairFolder):
    """Slices whose masks do not exist, or are not to be looked at: all pixels are of class 0."""

    def mask(self, stem: str) -> np.ndarray:
        return np.zeros(self.shapes[self.stems.index(stem)], np.uint8)

    @classmethod
    def of(cls, *folders: ImageFolder) -> WithoutMasks:
        """The slices of several folders as one."""
        files = {f"{i}/{stem}": folder.image_files[stem] for i, folder in enumerate(folders) for stem in folder.stems}
        shapes = tuple(shape for folder in folders for shape in folder.shapes)
        return cls(folders[0].path, folders[0].info, tuple(files), files, shapes)


def frozen(learner: Backbone, backbone: Backbone) -> Backbone:
    """A copy of a U-Net that learns, frozen and in the dtype of the backbone that it came from."""
    unet = copy.deepcopy(learner.unet).requires_grad_(False).eval().to(backbone.unet.dtype)
    return replace(backbone, unet=unet, fingerprint=weights_hash(learner.unet, backbone.vae))


def load_part(folder: Path, learner: Backbone, part: str) -> None:
    """Copy a checkpoint's weights into the part of a U-Net; InputError for those of other layers."""
    weights, wanted = load_file(folder / WEIGHTS), part_state(learner.unet, part)
    wrong = [name for name in {*weights, *wanted} if name not in weights or name not in wanted]
    wrong = wrong or [name for name in weights if weights[name].shape != wanted[name].shape]
    if wrong:
        raise InputError(
            f"{folder / WEIGHTS} does not fit the U-Net of {learner.name}, such as {wrong[0]}: adapt it anew"
        )
    learner.unet.load_state_dict(weights, strict=False)  # the other layers stay


def load_adapted(run: Path, backbone: Backbone) -> Backbone:
    """The backbone as the ControlNet of the folder `run` was trained over it: the given one, or an adapted copy."""
    settings = read_config(run).get("settings", {})
    if not settings.get("adapt"):
        return backbone
    checkpoint = RunFolder(run / ADAPTED).load_checkpoint()
    if checkpoint is None or checkpoint.step < settings["adapt"]:
        raise InputError(f"{run} has not adapted its backbone yet: go on with train_controlnet.py --resume --out {run}")
    learner = unlock(backbone, settings["adapt_part"])
    load_part(checkpoint.path, learner, settings["adapt_part"])
    return frozen(learner, backbone)
