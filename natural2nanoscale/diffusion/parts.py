"""A model's parts in folders, as diffusers saves them: which files to take, and loaded exactly or refused."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from transformers import CLIPTextModel, CLIPTokenizer

from natural2nanoscale.errors import InputError
from natural2nanoscale.finite import refuse_not_finite
from natural2nanoscale.records import read_json, reason
from natural2nanoscale.schemas import PART

ADAPTED = "adapted"  # within a ControlNet's run folder: the run that adapted its backbone
# parts of the U-Net in checkpoints: what was adapted in those of ADAPTED, the decoder beside the ControlNet
ADAPTED_FILE, DECODER_FILE = "unet_part.safetensors", "unet_decoder.safetensors"
# <name>.<variant>-<shard>.safetensors, variant and shard where there are some
WEIGHTS_FILE = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")


@contextmanager
def as_refusal(said: str, remedy: str) -> Iterator[None]:
    """Within it an error of any kind, as libraries raise them for damaged files, is an InputError that says so."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{said} ({reason(error)}): {remedy}") from error


def choose_weights(names: Sequence[str]) -> tuple[str | None, list[str]]:
    """Of a folder's files the variant to take, and its safetensors weights, none where there are none: None, the plain
    ones, goes first, then "fp16", then "bf16"."""
    found: dict[str | None, list[str]] = {}
    for name in names:
        if match := WEIGHTS_FILE.fullmatch(name):
            found.setdefault(match[1], []).append(name)
    variant = next((v for v in (None, "fp16", "bf16") if v in found), min(filter(None, found), default=None))
    return variant, found.get(variant, [])


def load_module(kind: type, folder: Path) -> torch.nn.Module:
    """from_pretrained without network, in float32, refusing any tensor that does not fit. The weights are safetensors,
    in one file or in shards; those of a variant, such as fp16 or bf16, serve where no others lie there."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    variant, files = choose_weights(names)
    if not files:
        raise InputError(f"{folder} {_without_safetensors(kind, folder, names)}")
    remedy = "expected config.json and safetensors weights of one architecture, as diffusers saves them"
    with as_refusal(f"{folder} cannot be loaded as {kind.__name__}", remedy):
        read_json(folder / "config.json", PART, links=True)
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
            output_loading_info=True,
            torch_dtype=torch.float32,
            **({} if kind is CLIPTextModel else {"low_cpu_mem_usage": False}),
        )
    for problem in ("missing_keys", "unexpected_keys"):
        keys = sorted(key for key in report[problem] if not key.endswith("position_ids"))
        if keys:
            raise InputError(
                f"{folder} has {len(keys)} {problem.replace('_', ' ')} for {kind.__name__}, such as {keys[0]}: "
                "the weights do not belong to this architecture"
            )
    refuse_not_finite(model.state_dict(), folder, "the weights are damaged, copy or make them anew")
    return model


def _without_safetensors(kind: type, folder: Path, names: list[str]) -> str:
    """What a folder that holds no safetensors weights holds instead, and what to do about it."""
    pickles = [name for name in names if name.endswith(".bin")]
    if not pickles:
        return f"holds no weights, found {', '.join(names) or 'nothing'}: expected config.json and *model.safetensors"
    code = (
        f"from {kind.__module__.split('.')[0]} import {kind.__name__} as Model; "
        f"Model.from_pretrained({str(folder)!r}, use_safetensors=False).save_pretrained({str(folder)!r})"
    )
    return (
        f"holds its weights as {pickles[0]}, which can run code when opened, expected *.safetensors: if you trust it, "
        f"`python -c {shlex.quote(code)}` writes them beside it"
    )


def load_scheduler(folder: Path) -> DDPMScheduler:
    """Of the noise; InputError where it belongs to a network that predicts neither that nor the velocity."""
    with as_refusal(f"scheduler/ of backbone {folder.parent} cannot be loaded", "copy it again"):
        scheduler = DDPMScheduler.from_pretrained(folder, local_files_only=True)
    predicted = scheduler.config.prediction_type
    if predicted not in ("epsilon", "v_prediction"):
        raise InputError(
            f"backbone {folder.parent} predicts {predicted!r} by its scheduler's config, expected 'epsilon' or "
            "'v_prediction'"
        )
    return scheduler


def load_tokenizer(folder: Path | str) -> CLIPTokenizer:
    """From a folder, without network. Raises InputError when it makes no difference between words."""
    with as_refusal(f"no tokenizer can be loaded from {folder}", "expected CLIP's files"):
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        one, two = tokenizer(["dark nucleus", "bright cytoplasm"]).input_ids
    if one == two:
        raise InputError(
            f"the tokenizer {folder} takes two prompts for the same, expected a CLIP vocabulary: its "
            "vocab.json and merges.txt, or tokenizer.json, are incomplete"
        )
    return tokenizer
