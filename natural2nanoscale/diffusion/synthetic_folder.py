"""The folder of synthetic slices: what is planned in it, what its files say, and whether a call goes on with it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel

from natural2nanoscale.data.folders import (
    GENERATION,
    DatasetInfo,
    PairFolder,
    fingerprint,
    read_generation,
    read_info,
    stems_of,
)
from natural2nanoscale.data.readers.gray import read_gray
from natural2nanoscale.diffusion.backbone import Backbone, weights_hash
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import holds_nothing, make_folder, refuse_link, sha256, write_json
from natural2nanoscale.records import read_lines
from natural2nanoscale.schemas import MANIFEST_ROW
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


def plan_image(source: str, copy: int, prompts: Sequence[str], seed: int) -> Image:
    """An image with its own seed and prompt: functions of (seed, mask, copy), whatever else is made."""
    image_seed = seed_for(seed, "image", source, copy)
    draw = torch.randint(len(prompts), (1,), generator=generator_for(image_seed, "prompt"))
    return Image(source, copy, image_seed, prompts[int(draw)])


def plan_images(stems: Sequence[str], per_mask: int, prompts: Sequence[str], seed: int) -> list[Image]:
    """`per_mask` images from every mask."""
    return [plan_image(source, copy, prompts, seed) for source in stems for copy in range(per_mask)]


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
    """The line of manifest.jsonl from which an image can be made again, but for the hash of its file."""
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


def most_planned(out: Path, per_mask: int, call: str | None) -> tuple[int, str | None]:
    """How many slices per mask complete `out`, and the call that makes them: the most that were ever asked for, as a
    call for fewer does not complete what one before it has begun."""
    if os.path.lexists(out / GENERATION) and not os.path.lexists(out / "dataset.json"):
        _, most, call_for_most = read_generation(out)
        if most > per_mask:
            return most, call_for_most
    return per_mask, call


def begin(out: Path, info: DatasetInfo, per_mask: int, call: str | None) -> None:
    """Make `out`, or go on with it, as a folder that is not complete."""
    write_json(out / GENERATION, info.to_json() | {"per_mask": per_mask, "call": call})  # first: a folder is ours by it
    make_folder(out / "images")
    make_folder(out / "masks")
    (out / "dataset.json").unlink(missing_ok=True)


def refuse_strangers(out: Path, planned: Sequence[Image]) -> None:
    """Raise InputError for a picture in `out` that is none of those that are planned or have a line."""
    known = {image.stem for image in planned}
    known |= {Path(row["file"]).stem for row in read_lines(out / "manifest.jsonl", MANIFEST_ROW)}
    for part in ("images", "masks"):
        refuse_link(out / part)
        for stem, file in stems_of(out / part).items():
            if stem not in known or file.suffix != ".png":
                raise InputError(f"{file} is none of the slices that are made here: remove it, or name another --out")


def standing_rows(out: Path, expected: Callable[[str, int], dict], masks: dict[str, np.ndarray]) -> dict[str, dict]:
    """Lines of manifest.jsonl by stem: those that stand as they would be written now, for a mask and a copy, and whose
    picture and mask are as they were written. The others, which can be made anew, are told of."""
    rows, doubtful = {}, []
    for row in read_lines(out / "manifest.jsonl", MANIFEST_ROW):
        stem = Path(row["file"]).stem
        name = re.fullmatch(r"(.+)_s(\d{3,9})", stem)
        source, copy = (name[1], int(name[2])) if name else ("", 0)
        stands = source in masks and row == expected(source, copy) | {"sha256": row.get("sha256")}
        if stands and _is_whole(out, row, masks[source]):
            rows[stem] = row
        elif stem not in rows:
            doubtful.append(stem)
    again = [stem for stem in dict.fromkeys(doubtful) if stem not in rows]
    if again:
        print(f"{len(again)} slice(s) in {out} are not as their lines say, such as {again[0]}: they are made anew")
    return rows


def _is_whole(out: Path, row: dict, mask: np.ndarray) -> bool:
    try:
        same = sha256(out / "images" / row["file"]) == row["sha256"]
        return same and np.array_equal(read_gray(out / "masks" / row["file"]), mask)
    except (OSError, InputError):
        return False
