"""The folder of synthetic slices: what is planned in it, what it says of itself, and whether a call goes on with it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from natural2nanoscale.files import holds_nothing, make_folder, write_json
from natural2nanoscale.locks import NAME, locked
from natural2nanoscale.seeds import generator_for, seed_for


@dataclass(frozen=True)
class Image:
    """One synthetic image to be made: the `copy`-th slice from the mask `source`."""

    source: str
    copy: int
    seed: int
    prompt: str
    tries: int = 1  # the filter had another noise drawn before each but the first

    @property
    def stem(self) -> str:
        return f"{self.source}_s{self.copy:03d}"


def plan_image(source: str, copy: int, prompts: Sequence[str], seed: int, tries: int = 1) -> Image:
    """An image with its own seed and prompt: functions of (seed, mask, copy, tries), whatever else is made."""
    image_seed = seed_for(seed, "image", source, copy)
    draw = torch.randint(len(prompts), (1,), generator=generator_for(image_seed, "prompt"))
    noise_seed = image_seed if tries == 1 else seed_for(image_seed, "redraw", tries)
    return Image(source, copy, noise_seed, prompts[int(draw)], tries)


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
    shard: tuple[int, int] = (1, 1)  # (i, n): the i-th of n calls that share the images among them; i from 1
    masks: str = "same"  # or "deformed", "between": how masks come out of the source's, see `Shapes`
    filter: dict | None = None  # "unet": who checks slices, "agreement": with its mask, below which one is redrawn

    @property
    def manifest(self) -> str:
        """Name of the file that this call writes its lines to; a shard's is its own."""
        return "manifest.jsonl" if self.shard == (1, 1) else "manifest-{}-of-{}.jsonl".format(*self.shard)

    @property
    def lock(self) -> str:
        """Name of the file that keeps other calls of this shard away."""
        return ".lock" if self.shard == (1, 1) else ".shard-{}-of-{}.lock".format(*self.shard)

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
            "masks": request.masks,
            "filter": request.filter,
            "seed": request.seed,
            "prompts": seed_for(*request.prompts),
        },
        learned=request.learned or {},
    )


def check_continues(out: Path, info: DatasetInfo) -> None:
    """Refuse to mix: `out` must be new, or a folder that was begun with what `info` says."""
    begun = begun_with(out)
    if begun is None:
        return
    before = begun.to_json()
    now = json.loads(json.dumps(info.to_json()))
    if before["origin"] != "synthetic":
        raise InputError(f"{out} holds a dataset of origin {before['origin']}: name another folder with --out")
    before["split"] = {"masks": "same", "filter": None} | before["split"]  # what older folders do not say
    changed = [key for key in now["split"] if before["split"].get(key) != now["split"][key]]
    changed += [key for key in ("classes",) if before[key] != now[key]]
    if changed:
        key = changed[0]
        raise InputError(
            f"{out} was made with another {key} ({before['split'].get(key)}, now {now['split'].get(key)}): "
            "repeat the old settings to go on, or name another folder with --out"
        )


@contextmanager
def alone(out: Path, request: Request) -> Iterator[None]:
    """Within it no other call of the same shard writes into `out`, and none at all beside one without --shard."""
    with ExitStack() as held:
        held.enter_context(locked(out, out / request.lock))
        if request.shard == (1, 1):
            for file in out.glob(".shard-*.lock"):
                held.enter_context(locked(out, file))
        else:  # after its own lock, as the other kind does in turn: of two at the same time one at least sees the other
            for patience in reversed(range(20)):
                try:
                    with locked(out, out / NAME):
                        break
                except InputError:  # it may be another shard that has just come by
                    if not patience:
                        raise
                    time.sleep(0.05)
        yield


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


def begin(out: Path, info: DatasetInfo, most: int, call: str | None, request: Request) -> None:
    """Make `out`, or go on with it, as a folder that is not complete until `most` slices of every mask stand."""
    said = info.to_json() | {"per_mask": most, "call": call}
    publish(out, GENERATION, write_json, said, request)  # first: a folder is ours by it
    for part in ("images", "masks", "conditioning") if request.filter else ("images", "masks"):
        make_folder(out / part)
    (out / "dataset.json").unlink(missing_ok=True)


def publish(out: Path, name: str, write: Callable[[Path, object], None], content: object, request: Request) -> None:
    """Write a file that other shards may be writing too, with the same content: each renames one of its own to it."""
    if request.shard == (1, 1):
        write(out / name, content)
        return
    own = out / ".{}-{}-of-{}.tmp".format(name, *request.shard)
    write(own, content)
    os.replace(own, out / name)
