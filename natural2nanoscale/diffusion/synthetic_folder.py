"""The folder of synthetic slices: what is planned in it, what its files say, and whether a call goes on with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import ControlNetModel

from natural2nanoscale.data.folders import (
    GENERATION,
    DatasetInfo,
    PairFolder,
    fingerprint,
    read_generation,
    read_info,
)
from natural2nanoscale.diffusion.backbone import Backbone, weights_hash
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import holds_nothing, read_lines, write_json
from natural2nanoscale.seeds import generator_for, seed_for


@dataclass(frozen=True)
class Image:
    """One synthetic image to be made: the `copy`-th slice from the mask `source`."""

    source: str
    copy: int
    seed: int
    prompt: str

    @property
    def stem(self) -> str:
        return f"{self.source}_s{self.copy:03d}"


def plan_images(stems: tuple[str, ...], per_mask: int, prompts: list[str], seed: int) -> list[Image]:
    """Every image with its own seed and prompt: functions of (seed, mask, copy), whatever else is made."""
    images = []
    for source in stems:
        for copy in range(per_mask):
            image_seed = seed_for(seed, "image", source, copy)
            draw = torch.randint(len(prompts), (1,), generator=generator_for(image_seed, "prompt"))
            images.append(Image(source, copy, image_seed, prompts[int(draw)]))
    return images


@dataclass(frozen=True)
class Request:
    """What is to be drawn from every mask."""

    prompts: list[str]
    settings: SamplingSettings
    per_mask: int = 1
    seed: int = 0
    learned: dict | None = None  # what the ControlNet was trained on, as its run's config.json says
    call: str | None = None  # the command that makes the rest, should this one be stopped


def describe(backbone: Backbone, controlnet: ControlNetModel, source: PairFolder, request: Request) -> DatasetInfo:
    """What dataset.json of a synthetic folder says: all that its pixels depend on."""
    return DatasetInfo(
        name=f"{source.info.name} synthetic",
        origin="synthetic",
        classes=source.info.classes,
        intensity_window=source.info.intensity_window,
        pixel_size_nm=source.info.pixel_size_nm,
        split={
            "rule": "synthesis",
            "source": {"part": source.path.name, "fingerprint": fingerprint(source)},
            "controlnet": weights_hash(controlnet),
            "backbone": backbone.fingerprint,
            "precision": backbone.precision,
            "sampler": "ddim",
            **asdict(request.settings),
            "seed": request.seed,
            "prompts": seed_for(*request.prompts),
        },
        learned=request.learned or {},
    )


def manifest_row(image: Image, info: DatasetInfo, request: Request, digests: dict[str, str]) -> dict:
    """The line of manifest.jsonl from which an image can be made again."""
    return {
        "file": f"{image.stem}.png",
        "seed": image.seed,
        "prompt": image.prompt,
        "source": image.source,
        "source_digest": digests.get(image.source),
        "checkpoint": info.split["controlnet"],
        "precision": info.split["precision"],
        "sampler": "ddim",
        **asdict(request.settings),
    }


def check_continues(out: Path, info: DatasetInfo) -> None:
    """Refuse to mix: `out` must be new, or a folder that was begun with what `info` says."""
    begun = begun_with(out)
    if begun is None:
        return
    before = begun.to_json()
    now = json.loads(json.dumps(info.to_json()))
    if before["origin"] != "synthetic":
        raise InputError(f"{out} holds a dataset of origin {before['origin']}: name another folder with --out")
    changed = [key for key in now["split"] if before["split"].get(key) != now["split"][key]]
    changed += [key for key in ("classes",) if before[key] != now[key]]
    if changed:
        key = changed[0]
        raise InputError(
            f"{out} was made with another {key} ({before['split'].get(key)}, now {now['split'].get(key)}): "
            "repeat the old settings to go on, or name another folder with --out"
        )


def begun_with(out: Path) -> DatasetInfo | None:
    """What a pair folder says, complete or not; None where nothing stands yet. InputError for anything else."""
    if holds_nothing(out):
        return None
    if (out / GENERATION).is_file() and not (out / "dataset.json").is_file():
        return read_generation(out)[0]
    return read_info(out)


def begin(out: Path, info: DatasetInfo, per_mask: int, call: str | None) -> int:
    """Make `out`, or go on with it, as a folder that is not complete; return how many slices per mask would make it so.

    They are the most that were ever asked for: a call for fewer does not complete what one before it has begun.
    """
    complete = out / "dataset.json"
    if (out / GENERATION).is_file() and not complete.is_file():
        _, most, call_for_most = read_generation(out)
        if most > per_mask:
            per_mask, call = most, call_for_most
    for part in ("images", "masks"):
        (out / part).mkdir(parents=True, exist_ok=True)
    write_json(out / GENERATION, info.to_json() | {"per_mask": per_mask, "call": call})
    complete.unlink(missing_ok=True)
    return per_mask


def read_manifest(out: Path) -> dict[str, dict]:
    """Lines of manifest.jsonl by stem, those whose image and mask both stand."""
    file = out / "manifest.jsonl"
    rows = {}
    for row in read_lines(file):
        if (out / "images" / row["file"]).is_file() and (out / "masks" / row["file"]).is_file():
            rows[Path(row["file"]).stem] = row
    return rows
