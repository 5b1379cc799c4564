"""The U-Net of Ronneberger, Fischer and Brox (2015), by hand, and the file that holds a trained one.

Deviations from the paper: convolutions are padded, so that the mask has the size of the slice, and each is
followed by a GroupNorm, so that training does not depend on how a batch is cut into micro-batches.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.device import native_bfloat16
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import make_folder, new_file, write_json
from natural2nanoscale.finite import refuse_not_finite
from natural2nanoscale.records import parse, reason
from natural2nanoscale.schemas import FORMAT, UNET

CPU = torch.device("cpu")
WEIGHTS_NAME = "unet.safetensors"


def double_conv(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with norm and ReLU: (B,inputs,H,W) -> (B,outputs,H,W)."""
    layers = []
    for channels in (inputs, outputs):
        layers += [
            nn.Conv2d(channels, outputs, 3, padding=1, bias=False),  # the norm brings the bias
            nn.GroupNorm(math.gcd(8, outputs), outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def pad_to_multiple(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Extend (B,C,H,W) at the right and the bottom until H and W are multiples; mirrored where possible."""
    height, width = images.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    if not bottom and not right:
        return images
    # A mirror image is shorter than what it mirrors: slices too small for it repeat their last pixel.
    mode = "reflect" if bottom < height and right < width else "replicate"
    return F.pad(images, (0, right, 0, bottom), mode=mode)


class UNet(nn.Module):
    """Contracting path, bottleneck, expanding path: `width` channels at the top, doubled `depth` times.

    `classes` is the number of classes K. The paper's network has width 64 and depth 4. Weights are float32;
    `precision` is that of the arithmetic, "float32" or, by autocast, "bfloat16".
    """

    def __init__(self, classes: int, width: int = 64, depth: int = 4, precision: str = "float32"):
        super().__init__()
        self.classes, self.width, self.depth, self.precision = classes, width, depth, precision
        channels = [width * 2**level for level in range(depth + 1)]  # 64, 128, 256, 512, 1024
        self.down = nn.ModuleList(
            double_conv(inputs, outputs) for inputs, outputs in zip([1, *channels[:-2]], channels[:-1], strict=True)
        )
        self.bottom = double_conv(channels[-2], channels[-1])
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(2 * outputs, outputs, 2, stride=2) for outputs in reversed(channels[:-1])
        )
        self.up = nn.ModuleList(double_conv(2 * outputs, outputs) for outputs in reversed(channels[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images (B,1,H,W) float in [-1,1], any H and W -> logits (B,K,H,W) float32."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.logits(images).float()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """`forward` in the precision of whoever calls it."""
        height, width = images.shape[-2:]
        x = pad_to_multiple(images, 2**self.depth)
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for rise, block, skip in zip(self.rise, self.up, reversed(skips), strict=True):
            x = block(torch.cat([skip, rise(x)], dim=1))
        return self.head(x)[..., :height, :width]


def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """Draw weights from a normal distribution of deviation sqrt(2 / fan_in), biases zero (U-Net paper, 3)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            # A stride-2 transposed 2x2 convolution adds up one pixel of every input channel per output pixel.
            fan_in = module.weight[0].numel() if isinstance(module, nn.Conv2d) else module.in_channels
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_in), generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def select_precision(name: str, device: torch.device) -> str:
    """`auto` is bfloat16 on a GPU that computes in it, else float32; the two others are themselves.

    On a CPU only if asked for: there it makes a third of the time, and cost narrow U-Nets (width 8, two slices, 1,500
    steps, two seeds) six points of mIoU.
    """
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" and native_bfloat16(device) else "float32"


def move_to(model: UNet, device: torch.device) -> UNet:
    """Move the network to the device, in the memory layout that is faster there; return it.

    Measured on one core with AMX, a training step in the plain layout over one in channels-last: float32 1.05, 1.08,
    1.09 and 1.15 for width 8, 16, 32 and 64; bfloat16 0.43, 0.62, 0.97 and 1.35: its norm of few channels is slow.
    """
    last = device.type == "cpu" and (model.precision == "float32" or model.width >= 64)
    return model.to(device, memory_format=torch.channels_last if last else torch.contiguous_format)


@dataclass(frozen=True)
class UNetInfo:
    """What a weights file knows of its network."""

    width: int
    depth: int
    classes: Classes
    intensity_window: tuple[float, float] | None = None  # grey values that became 0 and 255 at conversion
    trained: dict = field(default_factory=dict)  # seed, step and validation scores of these weights
    precision: str = "float32"  # of the arithmetic in their training
    pixel_size_nm: float | None = None  # of the training slices, where their folder says it

    def to_json(self) -> dict:
        facts = {"architecture": "natural2nanoscale U-Net", "input": "grey values 0..255 mapped to [-1,1]"}
        return {"format": FORMAT} | vars(self) | {"classes": self.classes.to_json()} | facts

    @classmethod
    def from_json(cls, data: dict) -> UNetInfo:
        """Of what fits `schemas.UNET`; ValueError where that makes no sense."""
        known = {one.name: data[one.name] for one in fields(cls) if one.name in data}  # older files say less
        window = data["intensity_window"]
        window = (float(window[0]), float(window[1])) if window and len(window) == 2 else None
        return cls(**known | {"classes": Classes.from_json(data["classes"]), "intensity_window": window})


def save_unet(folder: Path, model: UNet, info: UNetInfo) -> None:
    """Write unet.safetensors, whose metadata hold `info` and a hash of all, and config.json, which says the same.

    InputError, and nothing is written, where a weight is not finite.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    refuse_not_finite(tensors, folder / WEIGHTS_NAME, "start again with a lower --lr")
    folder.parent.mkdir(parents=True, exist_ok=True)
    make_folder(folder)
    described = json.dumps(info.to_json())
    metadata = {"format": "pt", "unet": described, "sha256": content_hash(described, tensors)}
    with new_file(folder / WEIGHTS_NAME, sum(tensor.nbytes for tensor in tensors.values())) as file:
        save_file(tensors, file, metadata=metadata)
    write_json(folder / "config.json", info.to_json())


def content_hash(described: str, tensors: dict[str, torch.Tensor]) -> str:
    """sha256 over a description and tensors on the CPU with their names and shapes."""
    digest = hashlib.sha256(described.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def load_unet(path: Path, device: torch.device = CPU) -> tuple[UNet, UNetInfo]:
    """Load a network from its weights file or the folder that holds it; on the device, in eval mode.

    It computes in the precision of its training, or in float32 on a device that does not compute in that.
    Raises InputError when the file is missing, damaged, or not one that `save_unet` wrote, and when a weight is not
    finite. A file from before there were hashes is taken without one.
    """
    file = Path(path) / WEIGHTS_NAME if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(f"{file} does not exist, expected a U-Net: train one with `python train_unet.py`")
    try:
        with safe_open(file, framework="pt") as weights:
            metadata = weights.metadata() or {}
            tensors = {name: weights.get_tensor(name) for name in weights.keys()}
        hash_ = content_hash(metadata["unet"], tensors)
        if metadata.keys() != {"format", "unet"} and metadata.get("sha256") != hash_:
            raise ValueError("its content does not match its hash")
        info = UNetInfo.from_json(parse(metadata["unet"], UNET, file))
        reduced = info.precision == "bfloat16" and native_bfloat16(device)
        parts = info.classes.count, info.width, info.depth, "bfloat16" if reduced else "float32"
        with torch.device("meta"):  # whatever the file says takes no memory before its tensors agree
            shapes = {name: tensor.shape for name, tensor in UNet(*parts).state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
            raise ValueError("its tensors are not those of the network that it describes")
        model = UNet(*parts)
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise InputError(
            f"{file} is not a U-Net of this program, or damaged ({reason(error)}): copy it again, or go on with "
            "`python train_unet.py --resume`, which writes it anew from its checkpoint"
        ) from error
    refuse_not_finite(tensors, file, "train it anew with `python train_unet.py` and a lower --lr")
    return move_to(model, device).eval(), info
