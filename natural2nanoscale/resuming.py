"""What may have changed when a run goes on, and what not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from natural2nanoscale.errors import InputError


def refuse_changes(out: Path, old: dict, config: dict, may_change: Sequence[str], serves: str) -> None:
    """Raise InputError for the first entry of a resumed run's config that is not as it was."""
    listed = old.get("slices", {})  # runs of older versions have no such lists
    for part in listed:
        changes = slice_changes(listed[part], config.get("slices", {}).get(part, {}))
        if changes:
            raise InputError(
                f"{out} goes on with the slices it began with, but in {part}/ {changes}: bring the old ones back, "
                f"or {serves}"
            )
    for part in sorted((set(config) | set(old)) - {"environments", "arguments", "slices", "learned", "hub_revision"}):
        before, now = old.get(part), config.get(part)
        if not isinstance(before, dict) or not isinstance(now, dict):
            before, now = {part: before}, {part: now}
        for key in sorted(set(before) | set(now)):
            if before.get(key) == now.get(key) or key in may_change:
                continue
            if part == "data" and key in listed:  # the slices are the same
                raise InputError(
                    f"{out} goes on as it began, but the classes in {key}/dataset.json are not as before: bring the "
                    "old ones back, or name another folder with --out"
                )
            raise InputError(
                f"{out} goes on as it began, but {key} was {before.get(key)} and is now {now.get(key)}: "
                "give the old value, or name another folder with --out"
            )


def slice_changes(before: dict[str, str], now: dict[str, str]) -> str:
    """What became of slices, given the digest of every stem, in words; empty when nothing did."""
    kinds = {
        "added": [stem for stem in now if stem not in before],
        "removed": [stem for stem in before if stem not in now],
        "changed": [stem for stem in before if now.get(stem, before[stem]) != before[stem]],
    }
    told = []
    for kind, stems in kinds.items():
        names = ", ".join(stems[:5]) + ", ..." * (len(stems) > 5)
        if stems:
            told.append(f"{len(stems)} {'was' if len(stems) == 1 else 'were'} {kind} ({names})")
    return ", ".join(told)
