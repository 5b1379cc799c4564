"""The lines of a synthetic folder: one per image, from which it can be made again, in one file or one of each shard."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from natural2nanoscale.data.folders import DatasetInfo, natural_order, stems_of
from natural2nanoscale.diffusion.shapes import Shapes
from natural2nanoscale.diffusion.synthetic_folder import Image, Request
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import refuse_link, sha256
from natural2nanoscale.records import read_lines
from natural2nanoscale.schemas import MANIFEST_ROW

MANIFEST, SHARDS = "manifest.jsonl", "manifest-*-of-*.jsonl"
MOST_TRIES = 4  # of an image that the filter does not let pass
HASHES = {"images": "sha256", "masks": "mask_sha256", "conditioning": "conditioning_sha256"}  # of an image's files
FOUND = (*HASHES.values(), "tint", "agreement", "rejected")  # what a line says besides what was planned


def manifest_row(image: Image, info: DatasetInfo, request: Request, shapes: Shapes) -> dict:
    """The line of a manifest from which an image can be made again, but for what is FOUND only then."""
    return {
        "file": f"{image.stem}.png",
        "seed": image.seed,
        "prompt": image.prompt,
        "source": image.source,
        "source_digest": shapes.digests.get(image.source),
        **shapes.facts(image.source, image.copy),
        **({"tries": image.tries} if request.filter else {}),
        "checkpoint": info.split["controlnet"],
        "precision": info.split["precision"],
        **asdict(request.settings),
    }


def manifest_lines(out: Path) -> list[dict]:
    """The lines of all manifests. The one that shards are merged into comes last: should that happen just now, no line
    is missed."""
    return [row for file in (*sorted(out.glob(SHARDS)), out / MANIFEST) for row in lines_of(file)]


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


def refuse_strangers(out: Path, planned: Sequence[Image]) -> None:
    """Raise InputError for a picture in `out` that is none of those that are planned or have a line."""
    known = {image.stem for image in planned} | {Path(row["file"]).stem for row in manifest_lines(out)}
    for part in HASHES:
        refuse_link(out / part)
        for stem, file in stems_of(out / part).items():
            if stem not in known or file.suffix != ".png":
                raise InputError(f"{file} is none of the slices that are made here: remove it, or name another --out")


def standing_rows(
    out: Path, sources: Collection[str], expected: Callable[[str, int, int], dict], tell: bool = True
) -> dict[str, dict]:
    """Lines by stem: those that stand as they would be written now, for a mask, a copy and a number of tries, and whose
    pictures are as they were written. The others, which can be made anew, are told of."""
    rows, doubtful = {}, []
    for row in manifest_lines(out):
        stem = Path(row["file"]).stem
        name = re.fullmatch(r"(.+)_s(\d{3,9})", stem)
        source, copy = (name[1], int(name[2])) if name else ("", 0)
        tries, found = row.get("tries", 1), {key: row[key] for key in FOUND if key in row}
        planned = source in sources and tries in range(1, MOST_TRIES + 1)
        if planned and row == expected(source, copy, tries) | found and _is_whole(out, row):
            rows[stem] = row
        elif stem not in rows:
            doubtful.append(stem)
    again = [stem for stem in dict.fromkeys(doubtful) if stem not in rows]
    if again and tell:
        print(f"{len(again)} slice(s) in {out} are not as their lines say, such as {again[0]}: they are made anew")
    return rows


def _is_whole(out: Path, row: dict) -> bool:
    """Whether the files of a line are those that were written; a rejected slice has none."""
    if row.get("rejected"):
        return row.get("tries") == MOST_TRIES
    parts = ("images", "masks", "conditioning") if "tries" in row else ("images", "masks")
    try:
        return all(sha256(out / part / row["file"]) == row.get(HASHES[part]) for part in parts)
    except OSError:
        return False
