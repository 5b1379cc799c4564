"""The folder of synthetic slices: what is planned in it, what its files say, and whether a call goes on with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import ControlNetModel

from natural2nanoscale.data.folders import (
    GENERATION,
    DatasetInfo,
    PairFolder,
    fingerprint,
    natural_order,
    read_generation,
    read_info,
)
from natural2nanoscale.diffusion.backbone import Backbone, weights_hash
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import holds_nothing, read_lines, write_json, write_lines
from natural2nanoscale.seeds import generator_for, seed_for

SHARDS = "manifest-*-of-*.jsonl"


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
    shard: tuple[int, int] = (1, 1)  # (i, n): the i-th of n calls that share the images among them; i from 1

    @property
    def manifest(self) -> str:
        """Name of the file that this call writes its lines to; a shard's is its own."""
        return "manifest.jsonl" if self.shard == (1, 1) else "manifest-{}-of-{}.jsonl".format(*self.shard)

    def images(self, stems: tuple[str, ...]) -> list[Image]:
        """Those that this call makes. Which shard an image belongs to is a function of (mask, copy): any `per_mask`
        deals them out evenly, and a larger one moves none."""
        planned = plan_images(stems, self.per_mask, self.prompts, self.seed)
        index, count = self.shard
        number = {stem: i for i, stem in enumerate(stems)}
        return [image for image in planned if (image.copy * len(stems) + number[image.source]) % count == index - 1]


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


def begin(out: Path, info: DatasetInfo, request: Request) -> None:
    """Make `out`, or go on with it, as a folder that is not complete.

    It will be when the most slices per mask that were ever asked for are there: a call for fewer does not complete what
    one before it has begun.
    """
    complete, per_mask, call = out / "dataset.json", request.per_mask, request.call
    if (out / GENERATION).is_file() and not complete.is_file():
        _, most, call_for_most = read_generation(out)
        if most > per_mask:
            per_mask, call = most, call_for_most
    for part in ("images", "masks"):
        (out / part).mkdir(parents=True, exist_ok=True)
    _publish(out, GENERATION, write_json, info.to_json() | {"per_mask": per_mask, "call": call}, request)
    complete.unlink(missing_ok=True)
    # rows of a killed run whose pictures are not whole are dropped; theirs are made again
    write_lines(out / request.manifest, _in_order(read_rows(out, request.manifest)))


def finish(out: Path, info: DatasetInfo, request: Request, stems: tuple[str, ...]) -> bool:
    """Whether every slice that was ever asked for stands. If so `out` is made complete, by whichever call sees it: the
    shards' manifests become one, and dataset.json comes last."""
    most = request.per_mask
    if (out / GENERATION).is_file():
        most = max(most, read_generation(out)[1])
    rows = read_manifest(out)
    if not all(image.stem in rows for image in plan_images(stems, most, request.prompts, request.seed)):
        return False
    _publish(out, "manifest.jsonl", write_lines, _in_order(rows), request)
    _publish(out, "dataset.json", write_json, info.to_json(), request)
    for file in (out / GENERATION, *out.glob(SHARDS)):
        file.unlink(missing_ok=True)
    return True


def read_manifest(out: Path) -> dict[str, dict]:
    """Lines of all manifests by stem, those whose image and mask both stand."""
    rows = {}
    # the one that they are merged into comes last: should that happen just now, no line is missed
    for file in (*sorted(out.glob(SHARDS)), out / "manifest.jsonl"):
        rows |= read_rows(out, file.name)
    return rows


def read_rows(out: Path, manifest: str) -> dict[str, dict]:
    """Lines of one manifest by stem, those whose image and mask both stand."""
    try:
        lines = read_lines(out / manifest)
    except FileNotFoundError:  # another shard has merged it between two looks
        return {}
    whole = [row for row in lines if all((out / part / row["file"]).is_file() for part in ("images", "masks"))]
    return {Path(row["file"]).stem: row for row in whole}


def _in_order(rows: dict[str, dict]) -> list[dict]:
    return sorted(rows.values(), key=lambda row: natural_order(row["file"]))


def _publish(out: Path, name: str, write: Callable[[Path, object], None], content: object, request: Request) -> None:
    """Write a file that other shards may be writing too, with the same content: each renames one of its own to it."""
    own = out / ".{}-{}-of-{}.tmp".format(name, *request.shard)
    write(own, content)
    os.replace(own, out / name)
