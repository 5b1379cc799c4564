"""A fine-tuned ControlNet on disk: diffusers' own format, a card, and the U-Net's decoder where it has learned."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from natural2nanoscale.data.folders import PairFolder
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.controlnet import decoder_state, make_controlnet, unlock_decoder
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.errors import InputError
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.text import markdown_text

DECODER_FILE = "unet_decoder.safetensors"


def save_trained(
    folder: Path, controlnet: ControlNetModel, backbone: Backbone, train: PairFolder, settings: FineTuning, step: int
) -> None:
    """Write controlnet/ with its card into `folder` and, where the decoder learns, its weights beside it."""
    controlnet.save_pretrained(folder / "controlnet", safe_serialization=True)
    known = train.info.classes
    classes = ", ".join(
        f"{markdown_text(name)} = RGB {color}" for name, color in zip(known.names, known.colors, strict=True)
    )
    facts = "\n".join(f"- {key}: {value}" for key, value in asdict(settings).items())
    seen = f"colour-coded class masks ({classes})"
    if settings.condition == "mask+edges":
        seen += ", darkened at class boundaries and, where these are known, at the edges of the slices,"
    over = f"the frozen backbone `{backbone.name}` (weights {backbone.fingerprint[:12]})"
    if settings.unlock_decoder:
        over += f", whose U-Net takes its decoder from ../{DECODER_FILE}"
        decoder = {name: value.cpu().contiguous() for name, value in decoder_state(backbone.unet).items()}
        save_file(decoder, folder / DECODER_FILE)
    (folder / "controlnet" / "README.md").write_text(
        f"# ControlNet for {markdown_text(train.info.name)}\n\nSteered by {seen} over {over}, "
        f"fine-tuned for {step} steps on {len(train.stems)} slices.\n\n{facts}\n",
        encoding="utf-8",
    )


def load_weights(folder: Path, controlnet: ControlNetModel, backbone: Backbone) -> None:
    """Copy what `save_trained` wrote into the existing parameters, whose memory format stays as it is.

    A saved decoder needs an unlocked backbone; one of other layers is an InputError.
    """
    saved = ControlNetModel.from_pretrained(folder / "controlnet", local_files_only=True, low_cpu_mem_usage=False)
    controlnet.load_state_dict(saved.state_dict())
    if (folder / DECODER_FILE).is_file():
        decoder = load_file(folder / DECODER_FILE)
        if decoder.keys() != decoder_state(backbone.unet).keys():
            raise InputError(f"{folder / DECODER_FILE} holds other layers than the decoder of {backbone.name}")
        backbone.unet.load_state_dict(decoder, strict=False)  # the other layers stay


def find_checkpoint(run: Path, name: str = "newest") -> Path:
    """The folder of a run's checkpoint: "newest", "best" (by mask agreement) or one such as "step-000500"."""
    checkpoint = RunFolder(run).load_checkpoint(None if name == "newest" else name)
    if checkpoint is None:
        wanted = "checkpoint yet" if name == "newest" else f"checkpoint {name}"
        remedy = "train with --judge" if name == "best" else "let train_controlnet.py run to its first one"
        raise InputError(f"{run} holds no {wanted}: {remedy}")
    return checkpoint.path


def load_trained(run: Path, backbone: Backbone, name: str = "newest") -> tuple[ControlNetModel, Backbone]:
    """A run's ControlNet, float32, and the backbone that it steers; both frozen, on the backbone's device.

    name: as in find_checkpoint. The backbone is the given one, or a copy with the decoder that was trained along.
    """
    folder = find_checkpoint(run, name)
    controlnet, dtype = make_controlnet(backbone), backbone.unet.dtype
    if (folder / DECODER_FILE).is_file():
        backbone = unlock_decoder(backbone)
    load_weights(folder, controlnet, backbone)
    backbone.unet.requires_grad_(False).to(dtype)
    return controlnet.requires_grad_(False).eval(), backbone
