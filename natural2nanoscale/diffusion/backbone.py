"""The frozen latent diffusion model: VAE, U-Net, text encoder, tokenizer and noise scheduler."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from natural2nanoscale.diffusion.hub import MODEL_PARTS, cached, from_hub, revision_of
from natural2nanoscale.diffusion.original import read_backbone, refuse_pickle
from natural2nanoscale.diffusion.parts import as_refusal, load_module, load_scheduler, load_tokenizer
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.diffusion.stable_diffusion import (
    HINT_CHANNELS,
    STABLE_DIFFUSION,
    STABLE_DIFFUSION_15,
    Configs,
    refuse_other_folder,
)
from natural2nanoscale.errors import InputError
from natural2nanoscale.records import read_json
from natural2nanoscale.schemas import RECOMMENDED

EMBEDDED = Path(__file__).parents[1] / "embedded"


@dataclass(frozen=True)
class Recommended:
    """What a backbone recommends for fine-tuning a ControlNet over it and for sampling. Defaults: SD 1.5."""

    learning_rate: float = 1e-5  # paper 4.4
    crop: tuple[int, int] = (512, 512)  # width, height in pixels
    adapt_learning_rate: float = 1e-5  # of the U-Net itself, FineTuning.adapt
    max_weight: float = 1.0  # of noisy timesteps in the loss; 1 is the plain loss of the paper
    strength: float = 1.0  # SamplingSettings.strength and .start
    start: float = 1.0
    conditioning_embedding_out_channels: tuple[int, ...] = HINT_CHANNELS


@dataclass(frozen=True)
class Backbone:
    """The frozen parts, in eval mode. Nothing in here takes a gradient step, but for the copy that `unlock` makes."""

    name: str
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler
    recommended: Recommended
    fingerprint: str  # sha256 over the U-Net's and the VAE's weights
    dtype: torch.dtype = torch.float32  # of the U-Net's arithmetic; a part of it that learns is float32 in any case
    revision: str | None = None  # of the hub, where it comes from there

    @property
    def precision(self) -> str:
        """What the U-Net computes in: "float32" or "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def downsampling(self) -> int:
        """Pixels per latent in each direction: 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def grid(self) -> int:
        """Heights and widths must be multiples of this many pixels: 64 for Stable Diffusion."""
        return self.downsampling * 2 ** (len(self.unet.config.block_out_channels) - 1)


def backbone_name(choice: str, origin: str) -> str:
    """Resolve `auto`: the embedded backbone for the phantom, Stable Diffusion 1.5 for everything else."""
    if choice != "auto":
        return choice
    return "embedded" if origin == "phantom" else STABLE_DIFFUSION


def load_backbone(
    name: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    tokenizer_folder: Path | str | None = None,
    configs: Configs = STABLE_DIFFUSION_15,
) -> Backbone:
    """Load and freeze a backbone: `embedded`, a diffusers folder, a hub id (the cache is asked first), or one
    `.safetensors` file in the original layout, whose parts are built from `configs`.

    The U-Net takes `dtype`, and the VAE decodes in it; its weights and the text encoder stay in float32.
    `tokenizer_folder` goes before the backbone's own tokenizer. The weights must be exactly those of the architecture:
    missing, unexpected or wrongly shaped ones raise InputError, nothing stays random.
    """
    for library in (diffusers_logging, transformers_logging):  # one line of ours says what they say in ten
        library.set_verbosity_error()
        library.disable_progress_bar()
    path, revision = EMBEDDED if name == "embedded" else Path(name), None
    if path.is_file():
        refuse_pickle(path)
        tokenizer = load_tokenizer(tokenizer_folder or _find_tokenizer(path))  # before gigabytes are read
        vae, unet, text_encoder, scheduler = read_backbone(path, configs)
        recommended = Recommended()
    else:
        folder = path if path.is_dir() else from_hub(name)
        revision = revision_of(folder)
        refuse_other_folder(folder)
        missing = [part for part in MODEL_PARTS if not (folder / part).is_dir()]
        if missing:
            said = f"backbone {folder} has no {missing[0]}/, expected a diffusers folder with"
            raise InputError(f"{said} {', '.join(MODEL_PARTS)}")
        tokenizer = load_tokenizer(tokenizer_folder or folder / "tokenizer")
        scheduler, recommended = load_scheduler(folder / "scheduler"), _recommended(folder)
        kinds = {"vae": AutoencoderKL, "unet": UNet2DConditionModel, "text_encoder": CLIPTextModel}
        vae, unet, text_encoder = (load_module(kind, folder / part) for part, kind in kinds.items())
    _check_fit(name, vae, unet, text_encoder, tokenizer)
    for part in (vae, unet, text_encoder):
        part.requires_grad_(False).eval().to(device)
    fingerprint = weights_hash(unet, vae)  # of the weights in the folder, whatever precision they run in
    unet.to(dtype)
    for part in (vae, unet):  # the faster memory format on CPU and on GPU alike
        part.to(memory_format=torch.channels_last)
    return Backbone(name, vae, unet, text_encoder, tokenizer, scheduler, recommended, fingerprint, dtype, revision)


def settle(settings: FineTuning, backbone: Backbone) -> FineTuning:
    """The settings with the backbone's window, learning rates and weight of noisy timesteps where they name none;
    InputError for a window that does not fit the backbone's grid, and where ControlNet's input would not."""
    smaller = 2 ** (len(backbone.recommended.conditioning_embedding_out_channels) - 1)
    if smaller != backbone.downsampling:
        raise InputError(
            f"backbone {backbone.name}: ControlNet would make masks {smaller} times smaller, and the VAE slices "
            f"{backbone.downsampling} times: say as many conditioning_embedding_out_channels in its "
            "natural2nanoscale.json as its VAE has block_out_channels"
        )
    crop, grid = settings.crop or backbone.recommended.crop, backbone.grid
    if crop[0] % grid or crop[1] % grid:
        up = tuple(-(-length // grid) * grid for length in crop)
        raise InputError(
            f"--crop {crop[0]}x{crop[1]} does not fit the backbone, expected multiples of {grid} pixels such as "
            f"{up[0]}x{up[1]}"
        )
    names = "learning_rate", "max_weight", "adapt_learning_rate"
    advised = {name: getattr(backbone.recommended, name) for name in names}
    return replace(settings, crop=crop, **{k: v for k, v in advised.items() if getattr(settings, k) is None})


def encode_prompts(backbone: Backbone, prompts: list[str]) -> torch.Tensor:
    """Prompts -> encoder_hidden_states (P,L,D) in the backbone's dtype; L is the tokenizer's full length."""
    tokens = backbone.tokenizer(
        prompts,
        padding="max_length",
        max_length=backbone.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        hidden = backbone.text_encoder(tokens.input_ids.to(backbone.device)).last_hidden_state
    return hidden.to(backbone.dtype)


def weights_hash(*modules: torch.nn.Module) -> str:
    """sha256 over all weights as float32, by name."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _find_tokenizer(file: Path) -> Path:
    """A single file holds no tokenizer: Stable Diffusion 1.5's in the local cache, or tokenizer/ beside the file."""
    snapshot = cached(STABLE_DIFFUSION, "tokenizer/vocab.json")
    for folder in (snapshot and snapshot / "tokenizer", file.parent / "tokenizer"):
        if folder is not None and folder.is_dir():
            return folder
    raise InputError(
        f"backbone {file} needs Stable Diffusion 1.5's tokenizer, found neither in the local cache nor in "
        f"{file.parent}/tokenizer: put vocab.json, merges.txt and tokenizer_config.json there, or name their "
        f"folder with --tokenizer (`hf download {STABLE_DIFFUSION} --include 'tokenizer/*'` fetches 2 MB)"
    )


def _check_fit(
    name: str, vae: AutoencoderKL, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> None:
    """Raise InputError unless the parts belong to one model."""
    text, attended = text_encoder.config, unet.config.cross_attention_dim
    channels = unet.config.in_channels, unet.config.out_channels, vae.config.latent_channels
    problem = None
    if attended != text.hidden_size:
        problem = f"attends to {attended} features but the text encoder gives {text.hidden_size}: expected parts of one"
    elif len(set(channels)) > 1:
        problem = "makes {1} channels of {0} but the VAE's latents have {2}: expected parts of one".format(*channels)
    elif len(tokenizer) > text.vocab_size or tokenizer.model_max_length > text.max_position_embeddings:
        problem = (
            f"is told {text.vocab_size} tokens in up to {text.max_position_embeddings} but the tokenizer has "
            f"{len(tokenizer)} in up to {tokenizer.model_max_length}: expected the tokenizer of this"
        )
    if problem:
        raise InputError(f"backbone {name}: the U-Net {problem} model, each in its folder with its config")


def _recommended(folder: Path) -> Recommended:
    """natural2nanoscale.json beside the parts, if any, overrides Stable Diffusion's values."""
    file = folder / "natural2nanoscale.json"
    if not file.is_file():
        return Recommended()
    with as_refusal(f"{file} cannot be read", "remove it, or copy the backbone again"):
        values = read_json(file, RECOMMENDED, links=True)["recommended"]
        if len(values.get("crop", (1, 1))) != 2:
            raise ValueError(f"its crop has {len(values['crop'])} sides")
    known = {field.name for field in fields(Recommended)}
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in known}
    return Recommended(**values)
