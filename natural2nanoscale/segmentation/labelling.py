"""What trained U-Nets say of slices that nobody annotated, and of those that were drawn from a mask."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from natural2nanoscale.data.classes import IGNORE_ID
from natural2nanoscale.data.digests import slice_digest
from natural2nanoscale.data.folders import (
    DOUBT,
    UNLABELLED,
    DatasetInfo,
    PairFolder,
    fingerprint,
    open_images,
    open_pairs,
    write_pairs,
)
from natural2nanoscale.data.roots import Learned, learned_by_run, learned_from_folder, learned_json, refuse_unfit
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import holds_nothing, make_folder, new_folder, save_png, sha256
from natural2nanoscale.segmentation.evaluation import trained_seeds
from natural2nanoscale.segmentation.inference import predict_bands, predict_mask
from natural2nanoscale.segmentation.metrics import confusion, iou
from natural2nanoscale.segmentation.unet import WEIGHTS_NAME, UNet, load_unet

Check = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
LARGEST_LOSS = 1.25  # times what its class's pixels lose on average: FreeMask's alpha (Yang et al. 2023)


def open_run_of(run: Path, info: DatasetInfo, device: torch.device) -> tuple[list[UNet], str, Learned]:
    """The U-Nets of a run, a hash of their weights, and what they learned, in terms of a dataset that they are asked
    about; a U-Net never sees colours."""
    folders = trained_seeds(run)
    networks = [load_unet(folder, device) for folder in folders]
    knows = networks[0][1]
    classes = info.classes if knows.classes.names == info.classes.names else knows.classes
    hashes = "".join(sha256(folder / WEIGHTS_NAME) for folder in folders)
    learned = learned_by_run(run, replace(info, classes=classes, intensity_window=knows.intensity_window))
    return [model for model, _ in networks], hashlib.sha256(hashes.encode()).hexdigest(), learned


def predicted_pairs(root: Path, run: Path, held_out: Sequence[PairFolder], device: torch.device) -> PairFolder:
    """DATA/predicted of a data root: its unlabelled slices and the masks that the U-Nets of a run predict, made once.

    Raises InputError where there are no unlabelled slices, where one of them is held out or the run has learned from
    such, and where DATA/predicted holds other slices, or masks of other U-Nets.
    """
    path, out = root / UNLABELLED, root / "predicted"
    if not (path / "dataset.json").is_file():
        raise InputError(
            f"there are no slices to predict masks on in {path}: make it with `python -m natural2nanoscale prepare "
            "--unlabelled`"
        )
    unlabelled = open_images(path)
    if unlabelled.info.transductive:
        raise InputError(
            f"validation and test slices are among those of {path}, and no slice is drawn from what is held out: "
            "prepare it without --transductive"
        )
    models, name, learned = open_run_of(run, unlabelled.info, device)
    refuse_unfit([learned, learned_from_folder(unlabelled)], held_out)
    digest = hashlib.sha256()
    for stem in unlabelled.stems:
        digest.update(f"{stem} {slice_digest(unlabelled.image(stem))}".encode())
    made_of = {"rule": "predicted", "unet": name, "slices": digest.hexdigest()}
    if not holds_nothing(out):
        folder = open_pairs(out)
        if {key: folder.info.split.get(key) for key in made_of} != made_of:
            raise InputError(
                f"{out} holds no masks that this U-Net predicted on the slices of {path}: remove it, and the same "
                "call makes it anew"
            )
        return folder

    slices = ((stem, unlabelled.image(stem)) for stem in tqdm(unlabelled.stems, desc="predicting", unit="slice"))
    info = replace(unlabelled.info, origin="predicted", split=made_of, learned=learned_json([learned], unlabelled.info))
    with new_folder(out, fresh=True) as folder:
        write_pairs(folder, info, labelled(models, slices, folder))
    return open_pairs(out)


def labelled(
    models: Sequence[UNet], slices: Iterable[tuple[str, np.ndarray]], out: Path
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Slices (H,W) uint8 by their stems, each with the mask (H,W) uint8 that U-Nets predict on it.

    What they doubt of it goes to out/doubt, (H,W) uint8: of 256 equal parts of the slice's pixels, from those whose
    class they are surest of, by their mean over the slice and its mirror images, the one that a pixel is in.
    """
    device = next(models[0].parameters()).device
    for stem, image in slices:
        grey = torch.tensor(image, device=device)[None]
        mask = predict_mask(models, grey)
        others = torch.cat([  # the probability of all other classes, which is exact where that of its own rounds to 1
            band.scatter(1, mask[:, None, top : top + band.shape[2]].long(), 0.0).sum(1)
            for top, band in predict_bands(models, grey, flips=True)
        ], dim=1)  # fmt: skip
        order = others.flatten().argsort(stable=True)
        parts = torch.empty_like(order)
        parts[order] = torch.arange(len(order), device=device) * 256 // len(order)
        save_png(make_folder(out / DOUBT) / f"{stem}.png", parts.view(mask.shape[1:]).to(torch.uint8).cpu().numpy())
        yield stem, image, mask[0].cpu().numpy()


def slice_filter(
    run: Path, agreement: float, held_out: Sequence[PairFolder], device: torch.device
) -> tuple[dict, Check, Learned]:
    """What a request for synthetic slices says of its filter, the filter, and what that has learned: `slice_check` by
    the U-Nets of a run, with the validation slices among `held_out` as its measure. InputError where the run has
    learned from these."""
    reference = next((folder for folder in held_out if folder.path.name == "val"), None)
    if reference is None:
        raise InputError("--filter measures doubt by what a U-Net loses on the slices of val/, and there are none")
    models, name, learned = open_run_of(run, reference.info, device)
    refuse_unfit([learned], held_out)
    said = {"unet": name, "reference": fingerprint(reference), "agreement": agreement}
    return said, slice_check(models, reference), learned


def slice_check(models: Sequence[UNet], reference: PairFolder) -> Check:
    """A check of slices that were drawn from masks, each on its own: slices (B,H,W) uint8 and masks (B,H,W) uint8 ->
    masks (B,H,W) uint8 and agreement (B,) in [0,1].

    In the masks, pixels whose cross entropy is more than LARGEST_LOSS times the mean of their class over the real
    slices of `reference`, which the U-Nets have not learned from, become the ignore id; none of a class that these
    lack. The agreement is the mean IoU of what the U-Nets see with the mask, over the classes in it; 0 without any.
    """
    classes, device = models[0].classes, next(models[0].parameters()).device

    def ask(slices: np.ndarray, masks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The likeliest ids, the masks' ids with K for those to ignore, and the loss, each (B,H,W)."""
        ids = torch.tensor(masks, device=device).long()
        ids[ids == IGNORE_ID] = classes
        answers, losses = [], []
        for top, band in predict_bands(models, torch.tensor(slices, device=device)):
            labels = ids[:, top : top + band.shape[2]].clamp(max=classes - 1)
            losses.append(-band.gather(1, labels[:, None])[:, 0].clamp(min=1e-12).log())
            answers.append(band.argmax(1))
        return torch.cat(answers, 1), ids, torch.cat(losses, 1)

    sums, counts = torch.zeros(2, classes + 1, dtype=torch.float64, device=device)
    for stem in reference.stems:
        _, ids, loss = ask(reference.image(stem)[None], reference.mask(stem)[None])
        sums += torch.bincount(ids.flatten(), loss.flatten().double(), classes + 1)
        counts += torch.bincount(ids.flatten(), minlength=classes + 1)
    limits = torch.where(counts > 0, LARGEST_LOSS * sums / counts, torch.inf)
    limits[classes] = torch.inf

    def check(slices: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answers, ids, loss = ask(slices, masks)
        doubtful = (loss > limits[ids]).cpu().numpy()
        agreement = []
        for answer, mask in zip(answers, torch.tensor(masks, device=device), strict=True):
            matrix = confusion(mask, answer, classes)
            agreement.append(iou(matrix)[matrix.sum(1) > 0].mean().nan_to_num().item())
        return np.where(doubtful, np.uint8(IGNORE_ID), masks), np.array(agreement)

    return check
