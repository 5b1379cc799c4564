"""Stable Diffusion 1.5 as constants: what its original files do not say, and how its relatives are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from natural2nanoscale.diffusion.parts import as_refusal
from natural2nanoscale.errors import InputError
from natural2nanoscale.records import read_json
from natural2nanoscale.schemas import DIFFUSERS_UNET

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # hub id; the older one is gone

# What original files begin their tensors' names with. A file may hold more; what that may be is listed here.
UNET, VAE, TEXT_ENCODER = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
CONTROLNET = "control_model."
EXTRA_PREFIXES = ("model_ema.",)  # a running mean of the weights
EXTRA_SUFFIXES = (".position_ids", ".logit_scale")  # 0, 1, 2, ...; CLIP's temperature, which no image depends on
EXTRA_NAMES = {  # the noise schedule, spelt out
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
    "scale_factor",
}  # fmt: skip
HINT_CHANNELS = (16, 32, 96, 256)  # of the ControlNet's layers that read the mask: one per halving of the VAE, plus one


@dataclass(frozen=True)
class Configs:
    """Keyword arguments of the parts' classes, which an original file does not hold."""

    unet: Mapping
    vae: Mapping
    text_encoder: Mapping
    scheduler: Mapping


STABLE_DIFFUSION_15 = Configs(  # where it is not what diffusers and transformers take by default
    unet={
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,  # the number of heads, which no weight's shape tells
    },
    vae={
        "sample_size": 512,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "scaling_factor": 0.18215,
    },
    text_encoder={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_attention_heads": 12,
        "hidden_act": "quick_gelu",
    },
    scheduler={
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "steps_offset": 1,
    },
)


def is_extra(name: str) -> bool:
    """Whether a tensor of an original file is known and not needed."""
    return name in EXTRA_NAMES or name.startswith(EXTRA_PREFIXES) or name.endswith(EXTRA_SUFFIXES)


def refuse_other_folder(folder: Path) -> None:
    """Raise InputError for a diffusers folder of a relative, named after what its configs say."""
    file = folder / "unet" / "config.json"
    with as_refusal(f"{file} is not the U-Net's config as diffusers saves it", "copy it again"):
        unet = read_json(file, DIFFUSERS_UNET, links=True) if file.is_file() else {}
    larger = (folder / "text_encoder_2").is_dir() or unet.get("addition_embed_type") == "text_time"
    widths = unet.get("in_channels"), unet.get("cross_attention_dim")
    _refuse(folder, (folder / "transformer").is_dir(), larger, *widths)


def refuse_other_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError for an original file of a relative, named after its tensors' names and shapes."""
    transformer = any(".joint_blocks." in name or "double_blocks." in name for name in shapes)
    larger = any(name.startswith(("conditioner.", UNET + "label_emb.", CONTROLNET + "label_emb.")) for name in shapes)
    conv_in, to_k = "input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    for prefix in (UNET, CONTROLNET):
        inputs = [(*shapes.get(prefix + name, ()), None, None)[1] for name in (conv_in, to_k)]
        _refuse(path, transformer, larger, *inputs)


def _refuse(where: Path, transformer: bool, larger: bool, in_channels: int | None, attended: int | None) -> None:
    """attended: the cross-attention's dimension."""
    relatives = {
        "a transformer model such as Stable Diffusion 3 or Flux": transformer,
        "Stable Diffusion XL": larger or attended == 2048,
        "an inpainting model": in_channels == 9,
        "Stable Diffusion 2": attended == 1024,
    }
    for name, found in relatives.items():
        if found:
            raise InputError(f"{where} is {name}, expected Stable Diffusion 1.5 or one of its kind: name one of those")
