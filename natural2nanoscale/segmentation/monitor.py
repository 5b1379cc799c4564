"""What looks at a training and keeps what comes of it: validation, the best weights, log, charts and checkpoints."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from tqdm import tqdm

from natural2nanoscale.charts import plot_progress
from natural2nanoscale.checkpoints import SavingTimer, State
from natural2nanoscale.data.classes import IGNORE_ID
from natural2nanoscale.data.encoders import encode_gray
from natural2nanoscale.errors import InputError
from natural2nanoscale.finite import SkippedSteps, add_finite
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.segmentation.batches import DeviceSlices
from natural2nanoscale.segmentation.inference import in_bands, slices_at_once
from natural2nanoscale.segmentation.metrics import confusion, iou, jsonable, miou
from natural2nanoscale.segmentation.schedule import Schedule
from natural2nanoscale.segmentation.settings import Settings
from natural2nanoscale.segmentation.slices import Slices
from natural2nanoscale.segmentation.unet import UNet, UNetInfo, save_unet
from natural2nanoscale.signals import Interrupted, StopSignal


def validate(model: UNet, pool: DeviceSlices, micro_batch: int) -> tuple[float, torch.Tensor]:
    """Mean cross-entropy over all labelled pixels and confusion matrix (K,K) of unaugmented slices."""
    model.eval()
    loss_sum = torch.zeros((), device=pool.device)
    matrix = torch.zeros(model.classes, model.classes, dtype=torch.int64, device=pool.device)
    for _, grey, masks in pool.batches(micro_batch):
        for top, logits in in_bands(lambda tile: model(encode_gray(tile, 1)), grey):
            truth = masks[:, top : top + logits.shape[2]]
            loss_sum += F.cross_entropy(logits, truth.long(), ignore_index=IGNORE_ID, reduction="sum")
            matrix += confusion(truth, logits.argmax(1), model.classes)
    model.train()
    return (loss_sum / matrix.sum().clamp(min=1)).item(), matrix.cpu()


@dataclass(frozen=True)
class Trained:
    """A trained network with its best weights, in eval mode."""

    model: UNet
    best: dict  # the line of the best validation: step, loss, val_loss, val_miou, val_iou
    rows: list[dict]  # the lines of all validations
    steps: int  # optimiser steps taken, fewer than planned when training stopped early


@dataclass
class Counts:
    """What a training counts, and its checkpoints hold."""

    step: int = 0
    useless: int = 0  # validations since the best one
    best: dict = field(default_factory=dict)  # the line of the best one


class Monitor:
    """A training under way: its counts, validations and best weights. With a run folder it goes on where the newest
    checkpoint there left off, and logs and saves in it; without one it writes nothing."""

    def __init__(self, model: UNet, optimizer: torch.optim.Optimizer, validation: Slices, schedule: Schedule,
                 settings: Settings, folder: RunFolder | None):  # fmt: skip
        self.model, self.schedule, self.settings, self.folder = model, schedule, settings, folder
        device = next(model.parameters()).device
        self.validation = DeviceSlices(validation, device)
        self.at_once = slices_at_once(validation.shapes, settings.width, device)
        self.patience = settings.patience or math.inf

        # all that moves, and so is saved
        self.counts = Counts()
        self.best_weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.train_loss = torch.zeros(2, device=device)  # summed loss and weights since the last validation
        parts = {"model": model, "optimizer": optimizer, "best": self.best_weights, "train_loss": self.train_loss}
        self.skipped = SkippedSteps(optimizer, device)
        self.state = State(self.counts, **parts, skipped=self.skipped.counts)
        self.rows: list[dict] = []  # the lines of all validations
        if folder:
            folder.restore(self.state)
            folder.drop_log_after(self.counts.step)
            self.rows = folder.read_log()
        self.started, self.timer = time.monotonic(), SavingTimer(settings.checkpoint_minutes, self.counts.step == 0)

    @property
    def ended(self) -> bool:
        """Whether all steps are taken, or validations have stopped getting better."""
        return self.counts.step >= self.schedule.total_steps or self.counts.useless >= self.patience

    def look(self, loss: torch.Tensor, weight: torch.Tensor, bar: tqdm) -> None:
        """Count a step with its summed loss and weights; when it is time, validate, log and keep the best weights."""
        self.counts.step += 1
        add_finite(self.train_loss, torch.stack([loss, weight]))
        self.skipped.refuse_too_many(self.counts.step, self.folder.path if self.folder else "the U-Net")
        bar.update()
        if self.counts.step % self.schedule.validate_every == 0:
            mixed = self.counts.step <= (self.settings.finetune_after or 0)  # never stop before fine-tuning
            self.counts.useless = 0 if mixed else self.counts.useless + 1
            row = self.validated()
            self.train_loss.zero_()
            if self.folder:
                self.folder.log(row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", mIoU=f"{row['val_miou']:.3f}", refresh=False)

    def validated(self) -> dict:
        """Look at the validation slices and keep the weights if they are the best so far; the line for the log."""
        val_loss, matrix = validate(self.model, self.validation, self.at_once)
        loss = (self.train_loss[0] / self.train_loss[1].clamp(min=1e-6)).item()
        if not math.isfinite(loss + val_loss):
            raise InputError(f"the loss became {loss + val_loss} by step {self.counts.step}: use a lower --lr")
        row = {
            "step": self.counts.step,
            "epoch": self.counts.step / self.schedule.per_epoch,
            "loss": loss,
            "val_loss": val_loss,
            "val_miou": miou(matrix).item(),
            "val_iou": jsonable(iou(matrix)),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        self.rows.append(row)
        best, key = self.counts.best, f"val_{self.settings.select_by}"
        sign = -1 if key == "val_loss" else 1  # the smallest loss, the largest mIoU
        if not best or sign * row[key] > sign * best[key]:
            self.counts.best, self.counts.useless = row, 0
            for name, tensor in self.model.state_dict().items():
                self.best_weights[name].copy_(tensor)
        return row

    def save(self, stop: StopSignal) -> None:
        """Save when it is time; Interrupted after a requested stop. What is saved does not know of an end, so that a
        longer training can go on from it."""
        step = self.counts.step
        due = stop.requested or self.ended or step % self.settings.checkpoint_every == 0 or self.timer.due()
        if self.folder and due:
            self.skipped.refuse_too_many(step, self.folder.path, saving=True)
            self.folder.save(self.state)
            self.timer.saved()
        if stop.requested:
            saved = self.folder.path if self.folder else "nothing"
            where = f"at step {step} of {self.schedule.total_steps}, {saved} is saved"
            raise Interrupted(f"{where}: go on with --resume", stop.number)

    def finish(self, training: Slices) -> Trained:
        """Look at the last steps if none has yet, then load the best weights; write them and the curves."""
        if self.counts.step % self.schedule.validate_every:
            self.validated()
        model, counts = self.model.eval(), self.counts
        model.load_state_dict(self.best_weights)
        if self.folder:
            plot_progress(self.folder.path / "progress.png", self.rows, [["loss", "val_loss"], ["val_miou"]])
            known = {"seed": self.settings.seed, "steps": counts.step, "best": counts.best}
            scale = training.intensity_window, known, model.precision, training.pixel_size_nm
            save_unet(self.folder.path / "best", model, UNetInfo(model.width, model.depth, training.classes, *scale))
        return Trained(model, counts.best, self.rows, counts.step)
