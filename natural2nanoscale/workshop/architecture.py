"""The embedded backbone's parts: a tiny Stable Diffusion in diffusers' classes and folder layout."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from natural2nanoscale.files import write_json
from natural2nanoscale.workshop.scenes import caption_words

# Training values that suit this backbone's ControlNet; read by the fine-tuning when it starts from this folder.
RECOMMENDED = {
    "conditioning_embedding_out_channels": [4, 8, 16],
    "learning_rate": 2e-3,
    "adapt_learning_rate": 5e-4,
    "crop": [224, 128],  # width, height
    "max_weight": 25.0,  # with the plain loss brightness and contrast follow the mask much later
    "strength": 1.6,  # both chosen by the validation mIoU of U-Nets trained on synthetic slices alone,
    "start": 0.8,  # on phantoms that appear in no table
}


def make_vae() -> AutoencoderKL:
    """4x down-sampling into 8 channels: half as many numbers as a grey image has, so that fine texture survives.
    Few norm groups: with one or two channels per group, group norm would wipe out brightness and contrast."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(16, 32, 64), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=2,
        mid_block_add_attention=False, sample_size=128,
    )  # fmt: skip


def make_unet() -> UNet2DConditionModel:
    """Three levels; cross-attention at the end of the way down and in the middle, where ControlNet has it as well."""
    return UNet2DConditionModel(
        sample_size=32, in_channels=8, out_channels=8, block_out_channels=(24, 48, 96), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("UpBlock2D",) * 3,
        cross_attention_dim=64, attention_head_dim=4, norm_num_groups=2,
    )  # fmt: skip


def make_tokenizer() -> CLIPTokenizer:
    """A byte-level CLIP tokenizer: one token for every word of the captions, pieces for any other text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # CLIP's byte alphabet: the others move up
    alphabet = [chr(c) for c in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    merges: list[tuple[str, str]] = []
    for word in caption_words() + EXTRA_WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:  # what the merges so far make of the word
            at = 0
            while at < len(pieces) - 1:
                if (pieces[at], pieces[at + 1]) == pair:
                    pieces[at : at + 2] = ["".join(pair)]
                at += 1
        while len(pieces) > 1:  # later merges never undo earlier words, as their rank is lower
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = ["".join(pieces[:2])]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=48)


# Frequent in prompts about microscopy, never in captions: whole tokens, so that long prompts fit the text encoder.
EXTRA_WORDS = (
    "the", "an", "in", "on", "at", "by", "for", "from", "is", "are", "to", "or", "showing", "shows", "electron",
    "microscopy", "microscope", "micrograph", "scanning", "transmission", "focused", "ion", "beam", "volume", "slice",
    "section", "cell", "cells", "cellular", "cytoplasm", "nucleus", "nuclei", "membrane", "membranes", "background",
    "resin", "tissue", "biological", "structure", "structures", "ultrastructure", "organelles", "mitochondria",
    "vesicles", "chromatin", "axon", "axons", "myelin", "detailed", "resolution", "grayscale", "gray", "scientific",
    "photo", "picture", "texture", "segmentation", "mask", "label", "labels", "region", "regions", "em", "sem", "tem",
)  # fmt: skip


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 64, which stay random: see `pretraining.train_unet`."""
    encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, projection_dim=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip
    encoder.get_input_embeddings().weight.data.mul_(3)  # a word counts more than its place
    return encoder


def make_scheduler() -> DDPMScheduler:
    """Stable Diffusion 1.5's noise schedule."""
    return DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000,
        prediction_type="epsilon", clip_sample=False, steps_offset=1,
    )  # fmt: skip


def write_backbone(folder: Path, vae, unet, text_encoder, tokenizer, scheduler) -> None:
    """Write the folder that `from_pretrained` reads: fp16 safetensors; configs say float32: so they load."""
    halves = {"vae": vae, "unet": unet, "text_encoder": text_encoder}
    halves = {name: copy.deepcopy(model).half() for name, model in halves.items()}
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**halves, tokenizer=tokenizer, scheduler=scheduler, **none).save_pretrained(folder)
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float32"}, indent=2) + "\n")
    write_json(folder / "natural2nanoscale.json", {"recommended": RECOMMENDED})
