"""Weights in a folder, as diffusers saves them: which of its files to take, and loaded exactly or refused."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import CLIPTextModel

from natural2nanoscale.errors import InputError
from natural2nanoscale.finite import refuse_not_finite
from natural2nanoscale.records import read_json, reason
from natural2nanoscale.schemas import PART

# <name>.<variant>-<shard>.safetensors, variant and shard where there are some
WEIGHTS_FILE = re.compile(r"(?:diffusion_pytorch_)?model(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors")


def variant_of(names: Sequence[str]) -> str | None:
    """Which of a folder's safetensors weights to take: None for the plain ones, which go first, else the name of a
    variant, such as "fp16". LookupError where there are none."""
    variants = {match[1] for name in names if (match := WEIGHTS_FILE.fullmatch(name))}
    if not variants:
        raise LookupError("no safetensors weights")
    known = [variant for variant in (None, "fp16", "bf16") if variant in variants]
    return known[0] if known else min(variants)


def load_module(kind: type, folder: Path) -> torch.nn.Module:
    """from_pretrained without network, in float32, refusing any tensor that does not fit. The weights are safetensors,
    in one file or in shards; those of a variant, such as fp16 or bf16, serve where no others lie there."""
    names = sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []
    try:
        variant = variant_of(names)
    except LookupError:
        raise InputError(f"{folder} {_without_safetensors(kind, folder, names)}") from None
    try:
        read_json(folder / "config.json", PART, links=True)
        options = {"low_cpu_mem_usage": False} if kind is not CLIPTextModel else {}
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
            output_loading_info=True,
            torch_dtype=torch.float32,
            **options,
        )
    except Exception as error:  # the libraries raise errors of all kinds for damaged files
        raise InputError(
            f"{folder} cannot be loaded as {kind.__name__} ({reason(error)}): expected config.json and safetensors "
            "weights of one architecture, as diffusers saves them"
        ) from error
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
