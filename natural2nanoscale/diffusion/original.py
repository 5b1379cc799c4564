"""Files in the layout of Stable Diffusion's and ControlNet's authors, read into diffusers' modules.

The mapping of names is diffusers'; which tensors there must be, and in which shape, is checked here.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from natural2nanoscale.diffusion.parts import as_refusal
from natural2nanoscale.diffusion.stable_diffusion import (
    TEXT_ENCODER,
    UNET,
    VAE,
    Configs,
    is_extra,
    refuse_other_file,
)
from natural2nanoscale.errors import InputError
from natural2nanoscale.finite import refuse_not_finite
from natural2nanoscale.records import open_regular

Tensors = dict[str, torch.Tensor]


def read_backbone(
    path: Path, configs: Configs
) -> tuple[AutoencoderKL, UNet2DConditionModel, CLIPTextModel, DDPMScheduler]:
    """One `.safetensors` file with U-Net, VAE and text encoder, of any float type -> the parts in float32, on the CPU.
    InputError unless its tensors are those of `configs`, each of them, and besides them known extras only."""
    tensors = read_safetensors(path)
    remedy = (
        "expected tensors named {}*, as its authors name them (of a diffusers folder name the folder; of a "
        "ControlNet's file `python -m natural2nanoscale convert` makes one)"
    )
    parts = split(path, tensors, {UNET: "U-Net", VAE: "VAE", TEXT_ENCODER: "text encoder"}, remedy)
    scheduler = DDPMScheduler(**configs.scheduler)
    expected = scheduler.alphas_cumprod
    found = tensors.get("alphas_cumprod", expected).float()
    if found.shape != expected.shape or (found - expected).abs().max() > 1e-3:
        ends = f"{found.flatten()[-1:].sum():.4f}), expected that of Stable Diffusion 1.5 ({expected[-1]:.4f})"
        raise InputError(
            f"{path} has a noise schedule of its own (alphas_cumprod ends at {ends}: convert it to a diffusers folder, "
            "whose scheduler/ can hold it"
        )
    with torch.device("meta"):  # no time is lost on random weights
        unet, vae = UNet2DConditionModel(**configs.unet), AutoencoderKL(**configs.vae)
    text_encoder = CLIPTextModel(CLIPTextConfig(**configs.text_encoder))
    # versions of transformers and of merging tools differ in `text_model.`
    stem = "text_model." if any(name.startswith("text_model.") for name in text_encoder.state_dict()) else ""

    def convert_text_encoder(tensors: Tensors, _: object) -> Tensors:
        prefix = TEXT_ENCODER + "transformer."
        return {stem + name.removeprefix(prefix).removeprefix("text_model."): t for name, t in tensors.items()}

    fill(unet, convert_ldm_unet_checkpoint, parts[UNET], path)
    fill(vae, convert_ldm_vae_checkpoint, parts[VAE], path)
    fill(text_encoder, convert_text_encoder, parts[TEXT_ENCODER], path)
    return vae, unet, text_encoder, scheduler


def refuse_pickle(path: Path) -> None:
    """Raise InputError for a backbone's file that is no `.safetensors` file."""
    if path.suffix == ".safetensors":
        return
    code = (
        f"import torch, safetensors.torch as s; t = torch.load({str(path)!r}, weights_only=True); "
        "s.save_file({n: v.clone().contiguous() for n, v in t.get('state_dict', t).items()}, "
        f"{str(path.with_suffix('.safetensors'))!r})"
    )
    raise InputError(
        f"--backbone {path}: expected a .safetensors file, other kinds can run code when opened: name one, or "
        f"write the tensors of a .ckpt into one by `python -c {shlex.quote(code)}`"
    )


def read_safetensors(path: Path) -> Tensors:
    """All tensors of a file, on the CPU; InputError if it is damaged or something else."""
    with as_refusal(f"{path} cannot be read as safetensors", "fetch or copy it once more"):
        open_regular(path).close()
        return load_file(path)


def split(
    path: Path, tensors: Tensors, parts: dict[str, str], remedy: str, beside: tuple[str, ...] = ()
) -> dict[str, Tensors]:
    """Tensors by prefix, without known extras. parts: prefixes and their names; beside: prefixes of what else there may
    be. InputError for a relative of Stable Diffusion 1.5, for unknown tensors, and for a part that is not there, with
    `remedy`, in which {} is its prefix."""
    refuse_other_file(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    found = {p: {n: t for n, t in tensors.items() if n.startswith(p) and not is_extra(n)} for p in parts}
    for prefix, part in parts.items():
        if not found[prefix]:
            raise InputError(f"{path} holds no {part}: {remedy.format(prefix)}")
    unknown = sorted(name for name in tensors if not name.startswith((*parts, *beside)) and not is_extra(name))
    if unknown:
        raise InputError(
            f"{path} has {len(unknown)} unexpected tensor(s), such as {unknown[0]}: expected names that begin with "
            f"{', '.join(parts)}"
        )
    return found


def fill(module: torch.nn.Module, convert: Callable[[Tensors, object], dict], source: Tensors, path: Path) -> None:
    """Give the module its weights, as float32 copies; InputError unless names and shapes are exactly its own. convert:
    from the names in `source` to the module's, by its config; a tensor that it drops is unexpected too."""
    expected, kind = module.state_dict(), type(module).__name__
    with as_refusal(f"{path} cannot be read as {kind}", "expected exactly the tensors of Stable Diffusion 1.5"):
        weights = {name: tensor for name, tensor in convert(source, module.config).items() if tensor is not None}
    used = {tensor.data_ptr() for tensor in weights.values()}
    dropped = sorted(name for name, tensor in source.items() if tensor.data_ptr() not in used)
    misshaped = [
        f"{name} {tuple(tensor.shape)} in place of {tuple(expected[name].shape)}"
        for name, tensor in weights.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    for problem, names in (
        ("missing", sorted(expected.keys() - weights.keys())),
        ("unexpected", sorted(weights.keys() - expected.keys()) + dropped),
        ("wrongly shaped", misshaped),
    ):
        if names:
            raise InputError(
                f"{path} has {len(names)} {problem} tensor(s) for {kind}, such as {names[0]}: "
                "expected exactly those of Stable Diffusion 1.5"
            )
    refuse_not_finite(weights, path, "the weights are damaged, fetch or copy them once more")
    module.load_state_dict({name: t.to(torch.float32, copy=True) for name, t in weights.items()}, assign=True)
