"""Backbones that the tests make themselves, small and random, and diffusers' pipelines over them."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.controlnet import make_controlnet
from natural2nanoscale.diffusion.stable_diffusion import STABLE_DIFFUSION_15, Configs

LETTERS = [chr(c) for c in range(ord("a"), ord("z") + 1)]
TOKENS = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(letter + "</w>" for letter in LETTERS)]
TEXT_ENCODER = {
    "vocab_size": len(TOKENS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
TINY = Configs(  # Stable Diffusion's parts, two levels each
    unet={
        "sample_size": 16,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    vae={
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 32,
    },
    text_encoder=TEXT_ENCODER,
    scheduler=STABLE_DIFFUSION_15.scheduler,
)
SMALL = Configs(  # Stable Diffusion 1.5's structure, every block of it, in small widths
    unet={
        **STABLE_DIFFUSION_15.unet,
        "sample_size": 8,
        "block_out_channels": (8, 16, 24, 32),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
    vae={
        **STABLE_DIFFUSION_15.vae,
        "sample_size": 64,
        "block_out_channels": (4, 8, 12, 16),
        "norm_num_groups": 4,
        "scaling_factor": 0.31,
    },
    text_encoder={**TEXT_ENCODER, "num_hidden_layers": 2},
    scheduler=STABLE_DIFFUSION_15.scheduler,
)


def make_parts(configs: Configs) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """With random weights of a fixed seed."""
    torch.manual_seed(0)
    vae, unet = AutoencoderKL(**configs.vae), UNet2DConditionModel(**configs.unet)
    return unet, vae, CLIPTextModel(CLIPTextConfig(**configs.text_encoder))


def save_tokenizer(folder: Path) -> Path:
    """One token for every letter."""
    vocabulary = {token: i for i, token in enumerate(TOKENS)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24).save_pretrained(folder)
    return folder


def save_backbone(folder: Path, configs: Configs, **recommended: object) -> Path:
    """A diffusers folder of random parts."""
    unet, vae, text_encoder = make_parts(configs)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text_encoder.save_pretrained(folder / "text_encoder")
    save_tokenizer(folder / "tokenizer")
    DDPMScheduler(**configs.scheduler).save_pretrained(folder / "scheduler")
    if recommended:
        (folder / "natural2nanoscale.json").write_text(json.dumps({"recommended": recommended}))
    return folder


def disturbed(backbone: Backbone):
    """A ControlNet whose zero convolutions are no longer zero, as after training."""
    controlnet = make_controlnet(backbone)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in controlnet.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return controlnet.eval()


def pipeline(kind: type, backbone: Backbone, controlnet, scheduler):
    """diffusers' pipeline of a kind over the backbone's parts."""
    made = kind(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.unet,
        controlnet=controlnet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made
