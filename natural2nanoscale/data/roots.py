"""A data root's parts, and the one check of what is learned from against what is held out: classes, windows, leaks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from natural2nanoscale.data.classes import IGNORE_ID, Classes
from natural2nanoscale.data.digests import mask_hash, slice_digest
from natural2nanoscale.data.folders import PARTS, DatasetInfo, ImageFolder, PairFolder, fingerprint, open_pairs
from natural2nanoscale.errors import InputError
from natural2nanoscale.records import read_config, read_lines
from natural2nanoscale.schemas import SOURCE_ROW

SHOWN = 3  # slices that a refusal names
TRANSDUCTIVE = (  # what reports and cards say where it is so
    "The unlabelled slices that were learned from included validation or test slices (transductive): scores on these "
    "say less about slices that were never seen."
)


def data_root(
    data: Path | None, parts: Sequence[str] = PARTS, make_default: Callable[[Path], None] | None = None
) -> Path:
    """The folder that holds the pair folders `parts`; `make_default` fills data/ when nothing is there.

    Only the default is ever filled: a --data that does not exist is an InputError.
    """
    root = Path(data) if data is not None else Path("data")
    if data is None and not root.exists() and make_default:
        print(f"no --data given and no {root}/ here: making the embedded phantom dataset in {root}/")
        make_default(root)
    missing = [part for part in parts if not (root / part / "dataset.json").is_file()]
    if missing:
        expected = " and ".join(filter(None, [", ".join(f"{part}/" for part in parts[:-1]), f"{parts[-1]}/"]))
        raise InputError(
            f"{root} has no pair folder {missing[0]}/, expected {expected} with dataset.json in each: "
            "make them with `python -m natural2nanoscale prepare`, or give their folder with --data"
        )
    return root


def held_out_parts(root: Path) -> list[PairFolder]:
    """val/ and test/ of a data root, those that are there."""
    return [open_pairs(root / part) for part in ("val", "test") if (root / part).is_dir()]


@dataclass(frozen=True)
class Learned:
    """What a network or a synthetic folder has seen, as far as it is written down.

    how: a sentence with {name}, {folder} and {slices}. info: its classes and grey window, None where they do not count.
    slices: digest of every slice by its name. fingerprints: of whole folders, which tell where digests are missing.
    masks: mask_hash of the masks that slices were drawn from. transductive: slices without masks, held-out ones among
    them, were seen on purpose; they do not count as learned from, but whatever is reported says so.
    """

    name: str
    how: str
    info: DatasetInfo | None
    slices: dict[str, str]
    fingerprints: frozenset[str] = frozenset()
    masks: frozenset[bytes] = frozenset()
    transductive: bool = False


def digests_of(folder: ImageFolder) -> dict[str, str]:
    """slice_digest by stem, of those slices whose microscope's pixels are known: written down, or never changed."""
    known, unchanged = folder.info.digests, folder.info.intensity_window is None
    digests = {stem: known.get(stem) for stem in folder.stems}
    return {stem: digest or slice_digest(folder.image(stem)) for stem, digest in digests.items() if digest or unchanged}


def learned_from_folder(folder: ImageFolder) -> Learned:
    """A folder of real slices, with masks or without, that a network is going to learn from."""
    how, open_ = "{name} holds the slices of {folder} such as {slices}", folder.info.transductive
    slices = {} if open_ else {f"{folder.path.name}/{stem}": digest for stem, digest in digests_of(folder).items()}
    whole = frozenset([fingerprint(folder)] if isinstance(folder, PairFolder) else [])
    return Learned(str(folder.path), how, folder.info, slices, whole, transductive=open_)


def learned_by_synthetic(folder: PairFolder, training: PairFolder | None = None) -> Learned:
    """A folder of synthetic slices: the slices whose masks they were drawn from, and those its ControlNet learned.

    Masks that `training` holds as well tell nothing: neighbours with one annotation agree by chance.
    """
    # refused: a line that is left out would hide a leak
    remedy = "repeat the command that made the folder, which mends it"
    lines = read_lines(folder.path / "manifest.jsonl", SOURCE_ROW, remedy)
    rows = {Path(row["file"]).stem: row for row in lines}
    sources = [rows.get(stem, {}) for stem in folder.stems]
    # a damaged line may lack the source's name: what it was drawn from counts all the same
    slices = {row.get("source", row["file"]): row["source_digest"] for row in sources if row.get("source_digest")}
    fingerprints = {(folder.info.split.get("source") or {}).get("fingerprint")} - {None}
    allowed = {mask_hash(training.mask(stem)) for stem in training.stems} if training else set()
    masks = {mask_hash(folder.mask(stem)) for stem in folder.stems} - allowed
    learned = folder.info.learned
    return Learned(
        name=str(folder.path),
        how="the masks of {folder} such as {slices} were used to make {name}, or its ControlNet learned from them",
        info=folder.info,
        slices=slices | {f"ControlNet: {name}": digest for name, digest in learned.get("slices", {}).items()},
        fingerprints=frozenset(fingerprints | set(learned.get("fingerprints", []))),
        masks=frozenset(masks),
        transductive=bool(learned.get("transductive")),
    )


def learned_by_run(run: Path, info: DatasetInfo | None = None) -> Learned:
    """What a run folder of ours was trained on, itself and before; a ControlNet of somebody else's does not say.

    A run from before there were digests knows the fingerprint of its training folder only. `run` may be the folder
    of a checkpoint's ControlNet as well.
    """
    checkpoint = run.resolve().parent
    config = read_config(checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else run)
    before = {"fingerprints": [config["data"]["train"]]} if "train" in config.get("data", {}) else {}
    learned = config.get("learned") or before
    how = "{name} was trained on the slices of {folder} such as {slices}"
    fingerprints, transductive = frozenset(learned.get("fingerprints", [])), bool(learned.get("transductive"))
    return Learned(str(run), how, info, learned.get("slices", {}), fingerprints, transductive=transductive)


def learned_json(learned: Sequence[Learned], info: DatasetInfo) -> dict:
    """What config.json of a run says of all that it learns from, under "learned"."""
    names: dict[str, str] = {}
    for one in learned:
        for name, digest in one.slices.items():
            names.setdefault(digest, f"{one.name}: {name}" if name in names.values() else name)
    seen = {
        "slices": {name: digest for digest, name in names.items()},
        "fingerprints": sorted(set().union(*(one.fingerprints for one in learned))),
        "intensity_window": info.intensity_window,
    }
    return seen | ({"transductive": True} if any(one.transductive for one in learned) else {})


def refuse_unfit(learned: Sequence[Learned], held_out: Sequence[PairFolder]) -> None:
    """Raise InputError unless all agree in classes and grey window, and no held-out slice has been learned from.

    Held-out slices are those of validation and test, or those to be scored. Slices of one grey value, and masks of one
    class, agree by chance and do not count.
    """
    described = [(one.name, one.info) for one in learned if one.info]
    described += [(str(folder.path), folder.info) for folder in held_out]
    for name, info in described[1:]:
        first_name, first = described[0]
        refuse_other_classes(name, info.classes, first_name, first.classes)
        if info.intensity_window != first.intensity_window:
            raise InputError(
                f"{name} has {window_text(info)}, {first_name} has {window_text(first)}, expected one grey scale: "
                "prepare both together, or by the same --window LOW,HIGH"
            )
    for folder in held_out:
        digests, whole = digests_of(folder), fingerprint(folder)
        masks = {stem: folder.mask(stem) for stem in folder.stems} if any(one.masks for one in learned) else {}
        for one in learned:
            seen = set(one.slices.values())
            found = [stem for stem, digest in digests.items() if digest in seen and np.ptp(folder.image(stem))]
            found += [
                stem
                for stem, mask in masks.items()
                if stem not in found and mask_hash(mask) in one.masks and len(np.unique(mask[mask != IGNORE_ID])) > 1
            ]
            if not found and whole in one.fingerprints:
                found = list(folder.stems)
            if found:
                named = ", ".join(map(repr, found[:SHOWN]))
                said = one.how.format(name=one.name, folder=folder.path, slices=named)
                raise InputError(
                    f"{said} ({len(found)} of {len(folder.stems)}), so scores on them are worthless: keep these slices "
                    "in one part, and train and generate from the training part alone"
                )


def refuse_other_classes(name: str, classes: Classes, first_name: str, first: Classes) -> None:
    """Raise InputError unless both have one class table; the names say whose they are."""
    if classes != first:
        raise InputError(
            f"{name} has other classes than {first_name} ({', '.join(classes.names)} and {', '.join(first.names)}), "
            "expected the same names and colours: take both from one dataset"
        )


def window_text(info: DatasetInfo) -> str:
    """The grey window of a folder in words."""
    low_high = info.intensity_window
    return f"the grey window {low_high[0]:g} to {low_high[1]:g}" if low_high else "8-bit grey values as they came"
