"""The folder of synthetic slices: whether a call may go on with it, what stands there, and when it is complete."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock

import numpy as np

from natural2nanoscale.data.folders import (
    GENERATION,
    DatasetInfo,
    natural_order,
    read_generation,
    read_info,
    stems_of,
)
from natural2nanoscale.diffusion.request import Image, Request
from natural2nanoscale.diffusion.settings import SamplingSettings
from natural2nanoscale.diffusion.shapes import Shapes
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import (
    append_lines,
    holds_nothing,
    make_folder,
    refuse_link,
    save_png,
    sha256,
    write_json,
    write_lines,
)
from natural2nanoscale.locks import NAME, locked
from natural2nanoscale.records import read_lines
from natural2nanoscale.schemas import MANIFEST_ROW

MANIFEST, SHARDS = "manifest.jsonl", "manifest-*-of-*.jsonl"
MOST_TRIES = 4  # of an image that the filter does not let pass
HASHES = {"images": "sha256", "masks": "mask_sha256", "conditioning": "conditioning_sha256"}  # of an image's files
UNSAID = asdict(SamplingSettings())  # of settings that a folder does not name: it is older than they are
FOUND = (*HASHES.values(), "tint", "agreement", "rejected")  # what a line says besides what was planned


class SyntheticFolder:
    """The folder in which a call, and those of other shards, make what is requested from the masks of `shapes`; `info`
    is what its dataset.json will say."""

    def __init__(self, path: Path, request: Request, shapes: Shapes, info: DatasetInfo):
        self.path, self.request, self.shapes, self.info = path, request, shapes, info
        self.manifest = path / f"manifest{request.suffix}.jsonl"
        self.parts = list(HASHES)[: 3 if request.filter else 2]  # folders of pictures
        self._appending = Lock()

    def refuse_other(self) -> None:
        """Raise InputError unless it is new, or was begun with what `info` says."""
        begun = begun_with(self.path)
        if begun is None:
            return
        before, now = begun.to_json(), json.loads(json.dumps(self.info.to_json()))
        if before["origin"] != "synthetic":
            said = f"a dataset of origin {before['origin']}"
            raise InputError(f"{self.path} holds {said}: name another folder with --out")
        was = {"masks": "same", "filter": None} | UNSAID | before["split"] | {"classes": before["classes"]}
        for key, value in (now["split"] | {"classes": now["classes"]}).items():
            if was.get(key) != value:
                raise InputError(
                    f"{self.path} was made with another {key} ({was.get(key)}, now {value}): repeat the old settings "
                    "to go on, or name another folder with --out"
                )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within it no other call of the same shard writes here, and none at all beside one without --shard."""
        with ExitStack() as held:
            held.enter_context(locked(self.path, self.path / self.request.lock))
            if not self.request.suffix:
                for file in self.path.glob(".shard-*.lock"):
                    held.enter_context(locked(self.path, file))
            else:  # after its own, as the other kind does in turn: of two at the same time one at least sees the other
                for patience in reversed(range(20)):
                    try:
                        with locked(self.path, self.path / NAME):
                            break
                    except InputError:  # it may be another shard that has just come by
                        if not patience:
                            raise
                        time.sleep(0.05)
            yield

    def most_asked(self) -> tuple[int, str | None, list[Image]]:
        """How many slices per mask complete it, the call that makes them, and all of them: the most that were ever
        asked for, as a call for fewer does not complete what one before it has begun."""
        most, call = self.request.per_mask, self.request.call
        if os.path.lexists(self.path / GENERATION) and not os.path.lexists(self.path / "dataset.json"):
            _, begun, call_begun = read_generation(self.path)
            if begun > most:
                most, call = begun, call_begun
        return most, call, replace(self.request, per_mask=most, shard=(1, 1)).images(self.shapes.source.stems)

    def refuse_strangers(self, planned: Sequence[Image]) -> None:
        """Raise InputError for a picture that is none of those that are planned or have a line."""
        known = {image.stem for image in planned} | {Path(row["file"]).stem for row in self.lines()}
        for part in HASHES:
            refuse_link(self.path / part)
            for stem, file in stems_of(self.path / part).items():
                if stem not in known or file.suffix != ".png":
                    raise InputError(f"{file} is none of the slices made here: remove it, or name another --out")

    def begin(self, most: int, call: str | None, done: dict[str, dict]) -> None:
        """Make it, or go on with it, as a folder that is not complete until `most` slices of every mask stand; of this
        shard's lines those in `done` stay."""
        self._publish(GENERATION, write_json, self.info.to_json() | {"per_mask": most, "call": call})  # ours by it
        for part in self.parts:
            make_folder(self.path / part)
        (self.path / "dataset.json").unlink(missing_ok=True)
        own = {Path(row["file"]).stem for row in lines_of(self.manifest)}
        write_lines(self.manifest, in_order({stem: row for stem, row in done.items() if stem in own}))

    def row(self, image: Image) -> dict:
        """The line from which an image can be made again, but for what is FOUND only then."""
        return {
            "file": f"{image.stem}.png",
            "seed": image.seed,
            "prompt": image.prompt,
            "source": image.source,
            "source_digest": self.shapes.digests.get(image.source),
            **self.shapes.facts(image.source, image.copy),
            **({"tries": image.tries} if self.request.filter else {}),
            "checkpoint": self.info.split["controlnet"],
            "precision": self.info.split["precision"],
            **asdict(self.request.settings),
        }

    def write(self, row: dict, pictures: dict[str, np.ndarray]) -> None:
        """The pictures (H,W) uint8 of an image, by part, and then, once all of them stand, its line."""
        for part, pixels in pictures.items():
            file = self.path / part / row["file"]
            save_png(file, pixels)
            row |= {HASHES[part]: sha256(file)}
        with self._appending:
            append_lines(self.manifest, [row])

    def lines(self) -> list[dict]:
        """Those of all manifests. The one that shards are merged into comes last: should that happen just now, no line
        is missed."""
        return [row for file in (*sorted(self.path.glob(SHARDS)), self.path / MANIFEST) for row in lines_of(file)]

    def standing(self, tell: bool = True) -> dict[str, dict]:
        """Lines by stem: those that are as they would be written now, and whose pictures are as they were written. The
        others, which can be made anew, are told of; InputError where the folder is complete and this call would not
        make them."""
        rows, doubtful = {}, {}
        for row in self.lines():
            (rows if self._stands(row) else doubtful)[Path(row["file"]).stem] = row
        again = [stem for stem in doubtful if stem not in rows]
        if again and tell:
            asked = {image.stem for image in self.request.images(self.shapes.source.stems)}
            left = [stem for stem in again if stem not in asked]
            if left and (self.path / "dataset.json").is_file():
                most = 1 + max(int(stem.rpartition("_s")[2]) for stem in again)
                raise InputError(
                    f"the slice {left[0]} in {self.path} is not as its line says, and this call would not make it "
                    f"anew: call it with --per-mask {most} and without --shard"
                )
            said = f"are not as their lines say, such as {again[0]}: they are made anew"
            print(f"{len(again)} slice(s) in {self.path} {said}")
        return rows

    def _stands(self, row: dict) -> bool:
        name, tries = re.fullmatch(r"(.+)_s(\d{3,9})\.png", row["file"]), row.get("tries", 1)
        if not name or name[1] not in self.shapes.sizes or tries not in range(1, MOST_TRIES + 1):
            return False
        planned = self.row(self.request.image(name[1], int(name[2]), tries))
        if UNSAID | row != planned | {key: row[key] for key in FOUND if key in row}:
            return False
        if row.get("rejected"):  # it has no pictures
            return tries == MOST_TRIES
        try:
            return all(sha256(self.path / part / row["file"]) == row.get(HASHES[part]) for part in self.parts)
        except OSError:
            return False

    def finish(self, planned: Sequence[Image]) -> bool:
        """Whether all that was ever asked for stands. If so the folder is made complete, by whichever call sees it: the
        shards' manifests become one, and dataset.json comes last. InputError where all of it was rejected."""
        rows, info = self.standing(tell=False), self.info
        if any(image.stem not in rows for image in planned):
            return False
        rejected = sum(bool(row.get("rejected")) for row in rows.values())
        if rejected == len(rows):
            raise InputError(
                f"all {rejected} slices in {self.path} were rejected, none agrees with its mask: lower "
                "--filter-agreement, train the ControlNet for longer, or leave --filter out, in another --out"
            )
        if self.request.filter:
            info = replace(info, split=info.split | {"rejected": rejected})
        self._publish(MANIFEST, write_lines, in_order(rows))
        self._publish("dataset.json", write_json, info.to_json())
        for file in (self.path / GENERATION, *self.path.glob(SHARDS)):
            file.unlink(missing_ok=True)
        return True

    def _publish(self, name: str, write: Callable[[Path, object], None], content: object) -> None:
        """Write a file that other shards may be writing too, with the same content: each renames its own to it."""
        own = self.path / f".{name}{self.request.suffix}.tmp"
        write(own, content)
        os.replace(own, self.path / name)


def begun_with(path: Path) -> DatasetInfo | None:
    """What a pair folder says, complete or not; None where nothing stands yet. InputError for anything else."""
    if holds_nothing(path):
        return None
    if (path / GENERATION).is_file() and not (path / "dataset.json").is_file():
        return read_generation(path)[0]
    return read_info(path)


def lines_of(file: Path) -> list[dict]:
    """The lines of one manifest; none where another shard has merged it between two looks."""
    try:
        return read_lines(file, MANIFEST_ROW)
    except InputError:
        if os.path.lexists(file):
            raise
        return []


def in_order(rows: dict[str, dict]) -> list[dict]:
    """Lines as people order their files."""
    return sorted(rows.values(), key=lambda row: natural_order(row["file"]))
