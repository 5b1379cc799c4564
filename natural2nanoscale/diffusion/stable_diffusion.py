"""Stable Diffusion 1.5 as constants: what its original files do not say, and how its relatives are told apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from natural2nanoscale.errors import InputError
from natural2nanoscale.records import read_json, reason
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


@dataclass(frozen=True)
class Configs:
    """Keyword arguments of the parts' classes, which an original file does not hold."""

    unet: Mapping
    vae: Mapping
    text_encoder: Mapping
    scheduler: Mapping


STABLE_DIFFUSION_15 = Configs(
    unet={
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,  # the number of heads, which no weight's shape tells
        "norm_num_groups": 32,
    },
    vae={
        "sample_size": 512,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
    text_encoder={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    },
    scheduler={
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
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
    try:
        unet = read_json(file, DIFFUSERS_UNET, links=True) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not the U-Net's config as diffusers saves it ({reason(error)})") from None
    if (folder / "transformer").is_dir():
        _refuse(folder, "a transformer model such as Stable Diffusion 3 or Flux")
    if (folder / "text_encoder_2").is_dir() or unet.get("addition_embed_type") == "text_time":
        _refuse(folder, "Stable Diffusion XL")
    _refuse_widths(folder, unet.get("in_channels"), unet.get("cross_attention_dim"))


def refuse_other_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError for an original file of a relative, named after its tensors' names and shapes."""
    if any(".joint_blocks." in name or "double_blocks." in name for name in shapes):
        _refuse(path, "a transformer model such as Stable Diffusion 3 or Flux")
    larger = ("conditioner.", UNET + "label_emb.", CONTROLNET + "label_emb.")
    if any(name.startswith(larger) for name in shapes):
        _refuse(path, "Stable Diffusion XL")
    for prefix in (UNET, CONTROLNET):
        conv_in = shapes.get(prefix + "input_blocks.0.0.weight", (None, None))
        to_k = shapes.get(prefix + "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (None, None))
        _refuse_widths(path, conv_in[1], to_k[1])


def _refuse_widths(where: Path, in_channels: int | None, cross_attention_dim: int | None) -> None:
    if in_channels == 9:
        _refuse(where, "an inpainting model")
    if cross_attention_dim == 1024:
        _refuse(where, "Stable Diffusion 2")
    if cross_attention_dim == 2048:
        _refuse(where, "Stable Diffusion XL")


def _refuse(where: Path, name: str) -> None:
    raise InputError(f"{where} is {name}, expected Stable Diffusion 1.5 or a model of its kind: name one of those")
