"""A fine-tuned ControlNet on disk: diffusers' own format, a card, and the U-Net's decoder where it has learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from natural2nanoscale.data.folders import PairFolder, fingerprint, pair_digests
from natural2nanoscale.data.roots import Learned, learned_from_folder, learned_json
from natural2nanoscale.diffusion.backbone import Backbone, weights_hash
from natural2nanoscale.diffusion.batches import TrainingData
from natural2nanoscale.diffusion.controlnet import decoder_state, make_controlnet, unlock_decoder
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.diffusion.weights import load_module
from natural2nanoscale.errors import InputError
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.text import markdown_text

DECODER_FILE = "unet_decoder.safetensors"


def run_config(
    settings: FineTuning,
    backbone: Backbone,
    data: TrainingData,
    tokenizer: Path | None = None,
    initial: ControlNetModel | None = None,
    before: Sequence[Learned] = (),
) -> dict:
    """What a ControlNet's run folder says of it, and what a resumed run must agree with.

    before: what `initial` had learned from.
    """
    train, val = data.train, data.val
    return {
        "kind": "controlnet",
        "settings": asdict(settings),
        "backbone": {
            "name": backbone.name,
            "weights": backbone.fingerprint,
            "tokenizer": str(tokenizer) if tokenizer else None,
            "precision": backbone.precision,
        },
        "hub_revision": backbone.revision,
        "controlnet_init": weights_hash(initial) if initial else None,
        "prompts": data.prompts,
        "classes": train.info.classes.to_json(),
        "data": {"train": fingerprint(train), "val": fingerprint(val)},
        "slices": {"train": pair_digests(train), "val": pair_digests(val)},
        "learned": learned_json([learned_from_folder(train), *before], train.info),
    }


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
