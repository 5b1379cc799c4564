"""A data root for other programs: an nnU-Net v2 dataset, or plain folders of images and masks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from natural2nanoscale.data.classes import IGNORE_ID
from natural2nanoscale.data.folders import PARTS, PairFolder, open_pairs
from natural2nanoscale.data.roots import data_root, learned_by_synthetic, learned_from_folder, refuse_unfit
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import new_folder, refuse_non_empty, save_png, write_json


def open_parts(data: Path, synthetic: Path | None) -> dict[str, PairFolder]:
    """train, val, test, and synthetic where there is one, named so; InputError where one has seen another's slices."""
    root = data_root(data)
    parts = {part: open_pairs(root / part) for part in PARTS}
    learned = [learned_from_folder(parts["train"])]
    if synthetic is not None:
        parts["synthetic"] = open_pairs(synthetic)
        learned.append(learned_by_synthetic(parts["synthetic"], parts["train"]))
    refuse_unfit(learned, [parts["val"], parts["test"]])
    return parts


def pairs_of(parts: dict[str, PairFolder]) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """(part, part_stem, image, mask) of all slices: real and synthetic ones may have one stem, and are for training."""
    for name, folder in parts.items():
        for stem in folder.stems:
            part = "train" if name == "synthetic" else name
            yield part, f"{name}_{stem}", folder.image(stem), folder.mask(stem)


def export_folders(data: Path, synthetic: Path | None, out: Path) -> None:
    """Write out/train, out/val and out/test, each with images/ and masks/ of equal file names: 8-bit grey PNG and class
    ids, 255 where there is no label. Synthetic slices join the training part.

    torch-em (`raw_key="*.png"`) and segmentation_models.pytorch's data sets read such folders as they are.
    """
    refuse_non_empty(out)
    parts = open_parts(data, synthetic)
    with new_folder(out) as folder:
        for part, kind in product(PARTS, ("images", "masks")):
            (folder / part / kind).mkdir(parents=True)
        for part, case, image, mask in pairs_of(parts):
            save_png(folder / part / "images" / f"{case}.png", image)
            save_png(folder / part / "masks" / f"{case}.png", mask)
    _tell(parts, out)


def export_nnunet(data: Path, synthetic: Path | None, out: Path, number: int) -> None:
    """Write out/nnUNet_raw/DatasetNNN_<name> and, with the one split that there is, out/nnUNet_preprocessed/.

    The training part and synthetic slices are the fold's training set and the validation part its validation set; the
    test part is imagesTs/ and labelsTs/. Unlabelled pixels become nnU-Net's ignore label, the highest id.
    """
    refuse_non_empty(out)
    parts = open_parts(data, synthetic)
    info = parts["train"].info
    name = f"Dataset{number:03d}_{re.sub(r'[^A-Za-z0-9]+', '', info.name) or 'slices'}"
    labels = {one: i for i, one in enumerate(info.classes.names)}
    if info.classes.names[0] != "background":
        if "background" in labels:
            raise InputError(
                f"{data} has the class background with id {labels['background']}, nnU-Net expects id 0: put it first "
                "with `prepare --classes`, and the masks' values with --map"
            )
        print(f"nnU-Net calls class 0 background: so is {info.classes.names[0]!r} named in dataset.json")
        labels = {"background": 0} | {one: i for one, i in labels.items() if i}
    ignored = False
    with new_folder(out) as folder:
        raw, ready = folder / "nnUNet_raw" / name, folder / "nnUNet_preprocessed" / name
        for made in (*(raw / kind for kind in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")), ready):
            made.mkdir(parents=True)
        split: dict[str, list[str]] = {part: [] for part in PARTS}
        for part, case, image, mask in pairs_of(parts):
            split[part].append(case)
            suffix = "Ts" if part == "test" else "Tr"
            ignored |= bool((mask == IGNORE_ID).any())
            mask = np.where(mask == IGNORE_ID, np.uint8(info.classes.count), mask)
            save_png(raw / f"images{suffix}" / f"{case}_0000.png", image)
            save_png(raw / f"labels{suffix}" / f"{case}.png", mask)
        described = {
            "name": info.name,
            "channel_names": {"0": "EM"},  # which nnU-Net normalises slice by slice
            "labels": labels | ({"ignore": info.classes.count} if ignored else {}),
            "numTraining": len(split["train"]) + len(split["val"]),
            "file_ending": ".png",
            "overwrite_image_reader_writer": "NaturalImage2DIO",
            "pixel_size_nm": info.pixel_size_nm,
        }
        write_json(raw / "dataset.json", described)
        write_json(ready / "splits_final.json", [{part: split[part] for part in ("train", "val")}])
    _tell(parts, out)
    places = " ".join(f"nnUNet_{one}={out / f'nnUNet_{one}'}" for one in ("raw", "preprocessed", "results"))
    print(f"next: export {places}")
    print(f"      nnUNetv2_plan_and_preprocess -d {number} -c 2d --verify_dataset_integrity")
    print(f"      nnUNetv2_train {number} 2d 0")


def _tell(parts: dict[str, PairFolder], out: Path) -> None:
    print(f"{', '.join(f'{len(folder.stems)} {part}' for part, folder in parts.items())} slices: written to {out}")
