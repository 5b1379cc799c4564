"""The frozen latent diffusion model: VAE, U-Net, text encoder, tokenizer and noise scheduler."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from natural2nanoscale.errors import InputError

EMBEDDED = Path(__file__).parent / "embedded"
STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class Recommended:
    """What a backbone recommends for fine-tuning a ControlNet over it and for sampling. Defaults: SD 1.5."""

    learning_rate: float = 1e-5  # paper 4.4
    crop: tuple[int, int] = (512, 512)  # width, height in pixels
    max_weight: float = 1.0  # of noisy timesteps in the loss; 1 is the plain loss of the paper
    strength: float = 1.0  # SamplingSettings.strength and .start
    start: float = 1.0
    # layers that read the mask: one entry per halving of the VAE, plus one
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)


@dataclass(frozen=True)
class Backbone:
    """The frozen parts, in eval mode. Nothing in here ever receives a gradient step."""

    name: str
    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler
    recommended: Recommended
    fingerprint: str  # sha256 over the U-Net's and the VAE's weights

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


def load_backbone(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Backbone:
    """Load and freeze a backbone: `embedded`, a diffusers folder, or a hub id (the cache is asked first).

    The U-Net takes `dtype`; VAE and text encoder stay in float32. Weights in the folder must be exactly
    those of the architecture: missing or unexpected ones raise InputError, nothing stays random.
    """
    folder = EMBEDDED if name == "embedded" else Path(name)
    if not folder.is_dir():
        folder = _from_hub(name)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise InputError(f"backbone {folder} has no {missing[0]}/, expected a diffusers folder with {', '.join(PARTS)}")
    for library in (diffusers_logging, transformers_logging):  # one line of ours says what they say in ten
        library.set_verbosity_error()
        library.disable_progress_bar()
    vae = _load(AutoencoderKL, folder / "vae")
    unet = _load(UNet2DConditionModel, folder / "unet")
    text_encoder = _load(CLIPTextModel, folder / "text_encoder")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"tokenizer/ or scheduler/ of backbone {folder} cannot be loaded ({error})") from error
    one, two = tokenizer(["dark nucleus", "bright cytoplasm"]).input_ids
    if one == two:
        raise InputError(
            f"the tokenizer of backbone {folder} takes two prompts for the same, expected a CLIP vocabulary: its "
            "vocab.json and merges.txt, or tokenizer.json, are incomplete"
        )
    if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
        raise InputError(
            f"backbone {folder}: the U-Net attends to {unet.config.cross_attention_dim} features but the text "
            f"encoder gives {text_encoder.config.hidden_size}, expected parts of one model"
        )
    for part in (vae, unet, text_encoder):
        part.requires_grad_(False).eval().to(device)
    fingerprint = weights_hash(unet, vae)  # of the weights in the folder, whatever precision they run in
    unet.to(dtype)
    for part in (vae, unet):  # the faster memory format on CPU and on GPU alike
        part.to(memory_format=torch.channels_last)
    return Backbone(name, vae, unet, text_encoder, tokenizer, scheduler, _recommended(folder), fingerprint)


def encode_prompts(backbone: Backbone, prompts: list[str]) -> torch.Tensor:
    """Prompts -> encoder_hidden_states (P,L,C) in the U-Net's dtype; L is the tokenizer's full length."""
    tokens = backbone.tokenizer(
        prompts,
        padding="max_length",
        max_length=backbone.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        hidden = backbone.text_encoder(tokens.input_ids.to(backbone.device)).last_hidden_state
    return hidden.to(backbone.unet.dtype)


def weights_hash(*modules: torch.nn.Module) -> str:
    """sha256 over all weights as float32, by name."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _load(kind: type, folder: Path) -> torch.nn.Module:
    """from_pretrained without network, in float32, refusing any key that does not fit."""
    try:
        options = {"low_cpu_mem_usage": False} if kind is not CLIPTextModel else {}
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            torch_dtype=torch.float32,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{folder} cannot be loaded as {kind.__name__} ({reason}): expected config.json and safetensors "
            "weights of one architecture, as diffusers saves them"
        ) from error
    for problem in ("missing_keys", "unexpected_keys"):
        keys = sorted(key for key in report[problem] if not key.endswith("position_ids"))
        if keys:
            raise InputError(
                f"{folder} has {len(keys)} {problem.replace('_', ' ')} for {kind.__name__}, such as {keys[0]}: "
                "the weights do not belong to this architecture"
            )
    return model


def _recommended(folder: Path) -> Recommended:
    """natural2nanoscale.json beside the parts, if any, overrides Stable Diffusion's values."""
    file = folder / "natural2nanoscale.json"
    if not file.is_file():
        return Recommended()
    values = json.loads(file.read_text(encoding="utf-8"))["recommended"]
    return Recommended(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def _from_hub(name: str) -> Path:
    """The cached snapshot of a hub id, or else a download of the parts that are needed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    advice = (
        "bring the weights as a diffusers folder and name it with --backbone, connect to the network once, or "
        "pass --backbone embedded for the small backbone of this package"
    )
    patterns = [f"{part}/*.{kind}" for part in PARTS for kind in ("json", "txt")]
    patterns += [f"{part}/*model.safetensors" for part in ("vae", "unet", "text_encoder")]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
    except HFValidationError:
        raise InputError(f"backbone {name!r} is neither a folder nor a hub id: {advice}") from None
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, etag_timeout=2))
    except Exception as error:  # the hub client raises many kinds; each of them means: not to be had now
        raise InputError(
            f"backbone {name} is not in the local cache and cannot be downloaded ({type(error).__name__}): {advice}"
        ) from None
