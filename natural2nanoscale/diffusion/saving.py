"""What fine-tuning leaves on disk: ControlNets in diffusers' own format, with a card, and what else has learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from diffusers import ControlNetModel
from safetensors.torch import load_file, save_file

from natural2nanoscale.cli import CONTROLNET_RUN, command
from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import DatasetInfo, PairFolder, fingerprint, pair_digests
from natural2nanoscale.data.roots import Learned, learned_from_folder, learned_json
from natural2nanoscale.device import select_dtype
from natural2nanoscale.diffusion.backbone import Backbone, load_backbone, weights_hash
from natural2nanoscale.diffusion.batches import TrainingData
from natural2nanoscale.diffusion.card import card
from natural2nanoscale.diffusion.controlnet import make_controlnet, part_state, unlock
from natural2nanoscale.diffusion.parts import ADAPTED, ADAPTED_FILE, DECODER_FILE, load_module
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.errors import InputError
from natural2nanoscale.records import read_config
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.schemas import CONTROLNET_CONFIG


def run_config(
    settings: FineTuning,
    backbone: Backbone,
    data: TrainingData,
    tokenizer: Path | None = None,
    initial: ControlNetModel | None = None,
    before: Sequence[Learned] = (),
) -> dict:
    """What a ControlNet's run folder says of it, and what a resumed run must agree with; `before`: what else is learned
    from, as by `initial`."""
    train, val = data.train, data.val
    said = asdict(settings)
    if not settings.adapt:  # runs from before there was such a thing go on
        said = {name: value for name, value in said.items() if not name.startswith("adapt")}
    return {
        "kind": "controlnet",
        "settings": said,
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
    folder: Path,
    controlnet: ControlNetModel,
    backbone: Backbone,
    train: PairFolder,
    settings: FineTuning,
    step: int,
    transductive: bool = False,
) -> None:
    """Write controlnet/ with its card into `folder` and, where the decoder learns, its weights beside it; transductive:
    validation or test slices were among those without masks that something learned."""
    controlnet.save_pretrained(folder / "controlnet", safe_serialization=True)
    if settings.unlock_decoder:
        save_part(folder / DECODER_FILE, backbone, "decoder")
    text = card(backbone, train, settings, step, transductive)
    (folder / "controlnet" / "README.md").write_text(text, encoding="utf-8")


def save_part(file: Path, backbone: Backbone, part: str) -> None:
    """Write a part of the U-Net, as `controlnet.belongs` takes it."""
    save_file({name: value.cpu().contiguous() for name, value in part_state(backbone.unet, part).items()}, file)


def load_part(file: Path, backbone: Backbone, part: str) -> None:
    """Copy what `save_part` wrote into the U-Net, which is unlocked; InputError for other layers."""
    weights, wanted = load_file(file), part_state(backbone.unet, part)
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in wanted.items()}:
        raise InputError(f"{file} holds other layers than the U-Net of {backbone.name}: train it anew")
    backbone.unet.load_state_dict(weights, strict=False)  # the other layers stay


def load_weights(folder: Path, controlnet: ControlNetModel, backbone: Backbone) -> None:
    """Copy what `save_trained` wrote into the existing parameters, whose memory format stays as it is. A saved decoder
    needs an unlocked backbone."""
    saved = ControlNetModel.from_pretrained(folder / "controlnet", local_files_only=True, low_cpu_mem_usage=False)
    controlnet.load_state_dict(saved.state_dict())
    if (folder / DECODER_FILE).is_file():
        load_part(folder / DECODER_FILE, backbone, "decoder")


def freeze(backbone: Backbone) -> Backbone:
    """A backbone whose U-Net has learned, frozen in the dtype of its arithmetic, with the fingerprint of today."""
    fingerprint = weights_hash(backbone.unet, backbone.vae)
    backbone.unet.requires_grad_(False).eval().to(backbone.dtype)
    return replace(backbone, fingerprint=fingerprint)


def find_checkpoint(run: Path, name: str = "newest") -> Path:
    """The folder of a run's checkpoint: "newest", "best" (by mask agreement) or one such as "step-000500"."""
    checkpoint = RunFolder(run).load_checkpoint(None if name == "newest" else name)
    if checkpoint is None:
        wanted = "checkpoint yet" if name == "newest" else f"checkpoint {name}"
        remedy = "train with --judge" if name == "best" else "let train_controlnet.py run to its first one"
        raise InputError(f"{run} holds no {wanted}: {remedy}")
    return checkpoint.path


def trained_config(run: Path, data: Path | None) -> dict:
    """config.json of a ControlNet's run folder; InputError where it is none. data: the root that one is wanted for."""
    if not (run / "config.json").is_file():
        before = command("python train_controlnet.py", data=data, out=None if run == CONTROLNET_RUN else run)
        raise InputError(
            f"there is no trained ControlNet in {run}: first run `{before}`, or name its run folder with --controlnet"
        )
    kind = read_config(run).get("kind")
    if kind != "controlnet":
        raise InputError(
            f"{run} is a run of kind {kind}, expected one of train_controlnet.py: name that with --controlnet"
        )
    return read_config(run, CONTROLNET_CONFIG)


def trained_info(config: dict, info: DatasetInfo) -> DatasetInfo:
    """What dataset.json said of the slices that a run learned from, as far as its config tells; else as in `info`."""
    window = config.get("learned", {}).get("intensity_window", info.intensity_window)
    classes = Classes.from_json(config["classes"])
    return replace(info, classes=classes, intensity_window=tuple(window) if window else None, digests={})


def backbone_of_run(
    run: Path,
    config: dict,
    device: torch.device,
    precision: str = "auto",
    name: str | None = None,
    tokenizer: Path | None = None,
) -> Backbone:
    """The backbone that a run's ControlNet was trained over; `name` and `tokenizer`: where it lies by now."""
    known = config["backbone"]
    tokenizer = tokenizer or (None if name else known.get("tokenizer"))
    backbone = load_backbone(name or known["name"], device, select_dtype(precision, device), tokenizer)
    if backbone.fingerprint != known["weights"]:
        raise InputError(
            f"backbone {backbone.name} has other weights than the one that {run} was trained over "
            f"({known['name']}): name that one with --backbone"
        )
    return backbone


def load_trained(run: Path, backbone: Backbone, name: str = "newest") -> tuple[ControlNetModel, Backbone]:
    """A run's ControlNet, float32, and the backbone that it steers, both frozen: the given one, or a copy that was
    adapted before, or whose decoder was trained along. name: as in find_checkpoint."""
    folder = find_checkpoint(run, name)
    backbone = load_adapted(run, backbone)
    controlnet = make_controlnet(backbone)
    if (folder / DECODER_FILE).is_file():
        backbone = unlock(backbone, "decoder")
    load_weights(folder, controlnet, backbone)
    backbone.unet.requires_grad_(False).to(backbone.dtype)
    return controlnet.requires_grad_(False).eval(), backbone


def load_adapted(run: Path, backbone: Backbone) -> Backbone:
    """The backbone as the ControlNet of the folder `run` was trained over it: the given one, or an adapted copy."""
    settings = read_config(run).get("settings", {})
    if not settings.get("adapt"):
        return backbone
    checkpoint = RunFolder(run / ADAPTED).load_checkpoint()
    if checkpoint is None or checkpoint.step < settings["adapt"]:
        raise InputError(f"{run} has not adapted its backbone yet: go on with train_controlnet.py --resume --out {run}")
    part = settings.get("adapt_part", "all")
    adapted = unlock(backbone, part)
    load_part(checkpoint.path / ADAPTED_FILE, adapted, part)
    return freeze(adapted)


def load_initial(folder: Path, backbone: Backbone) -> ControlNetModel:
    """The ControlNet of a diffusers folder, or the newest one of a run folder, as make_controlnet would give it.
    InputError unless its tensors and its architecture are exactly those that the backbone needs."""
    if (folder / "checkpoints").is_dir():
        folder = find_checkpoint(folder) / "controlnet"
    checkpoint = folder.resolve().parent  # where it is one of ours
    adapted = checkpoint.parent.name == "checkpoints" and (checkpoint.parent.parent / ADAPTED).is_dir()
    if adapted or (checkpoint / DECODER_FILE).is_file():
        raise InputError(
            f"{folder} was trained with {'--adapt' if adapted else '--unlock-decoder'}: it belongs to a U-Net that a "
            "new run would not have, expected one over the backbone as it is, or go on in its run with --resume"
        )
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
