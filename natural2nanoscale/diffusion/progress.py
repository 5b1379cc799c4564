"""What learns in a training, what is shown of it as it does, and what is saved."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from tqdm import tqdm

from natural2nanoscale import distributed
from natural2nanoscale.charts import plot_progress
from natural2nanoscale.checkpoints import SavingTimer, State
from natural2nanoscale.diffusion.backbone import Backbone
from natural2nanoscale.diffusion.batches import TrainingData
from natural2nanoscale.diffusion.memory import moved
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.diffusion.validation import Validation
from natural2nanoscale.errors import InputError
from natural2nanoscale.finite import SkippedSteps
from natural2nanoscale.runs import RunFolder
from natural2nanoscale.signals import Interrupted, StopSignal

LOG_EVERY = 20  # steps; reading the loss waits for the device
JUDGED_MASKS = 8  # of val/, evenly spaced, from which slices are drawn for the mask agreement


@dataclass
class Counts:
    """What a training counts, and its checkpoints hold."""

    step: int = 0
    best: float = -1.0  # mask agreement
    seconds: float = 0.0  # of training, over all calls


class Learner:
    """The networks of a training, those of their weights that learn, and its state, which checkpoints hold."""

    def __init__(
        self, backbone: Backbone, controlnet: ControlNetModel | None, groups: list[dict], settings: FineTuning
    ):
        """groups: of parameters, as Adam takes them, each with its learning rate."""
        self.backbone, self.controlnet = backbone, controlnet
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.Adam(groups, fused=True)
        self.counts = Counts()
        self.losses = torch.zeros(2, device=backbone.device)  # sum and number since the log's last line
        self.skipped = SkippedSteps(self.optimizer, backbone.device)
        self.state = State(self.counts, optimizer=self.optimizer, losses=self.losses, skipped=self.skipped.counts)
        for model in filter(None, (backbone.unet, controlnet)):
            if settings.gradient_checkpointing:
                model.enable_gradient_checkpointing()
            else:
                model.disable_gradient_checkpointing()


class Progress:
    """Within it a training shows how it goes: after each step `look`, then `save`.

    The first process does both; the others wait for it where all meet next, and its clock is theirs.
    """

    def __init__(
        self,
        run: RunFolder,
        learner: Learner,
        data: TrainingData,
        settings: FineTuning,
        save_model: Callable[[Path], None],
        agreement: Callable[[np.ndarray, np.ndarray], float] | None = None,
        label: str = "ControlNet",
    ):
        """agreement: as `training.fine_tune` takes it."""
        self.run, self.learner, self.settings, self.save_model = run, learner, settings, save_model
        self.counts, self.agreement, self.label, self.main = learner.counts, agreement, label, distributed.is_main()
        self.total = settings.total_steps(len(data.train.stems))
        looked_at = learner.backbone, learner.controlnet, data, settings
        self.validation = Validation(*looked_at)
        self.judged = Validation(*looked_at, JUDGED_MASKS) if agreement else None

    def __enter__(self) -> Progress:
        self.started = time.monotonic() - self.counts.seconds
        self.timer = SavingTimer(self.settings.checkpoint_minutes, first=self.counts.step == 0)
        if self.main and self.counts.step == 0:
            self.validation.write_strip(self.run.path / "samples", 0)
        self.stop = StopSignal().__enter__()
        step = {"initial": self.counts.step, "total": self.total, "unit": "step"}
        self.bar = tqdm(**step, desc=self.label, disable=not self.main)
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        self.stop.__exit__(*exception)

    def look(self, epoch: int) -> None:
        """Log the loss every so often; less often draw samples, take the validation loss and the mask agreement."""
        step, every = self.counts.step, self.settings.checkpoint_every
        self.bar.update()
        self.ended = step == self.total
        self.signal, due = distributed.highest(self.stop.number, self.main and self.timer.due())
        logging = step % LOG_EVERY == 0 or step % every == 0 or self.ended or bool(self.signal)
        self.saving = step % every == 0 or self.ended or bool(self.signal or due)
        try:
            self.learner.skipped.refuse_too_many(step, self.run.path, self.saving)
        except InputError as error:
            raise distributed.agreed(error) from None
        if logging or self.saving:
            self._read_loss(epoch, logging)
        if self.main and (step % self.settings.sample_every == 0 or self.ended):
            self._sample()

    def save(self) -> None:
        """Write a checkpoint where one is due; leave by Interrupted where a stop was asked for."""
        if self.main and self.saving:
            self.run.save(self.learner.state, self.save_model, keep=self.settings.keep)
            self.timer.saved()
        whole = self.run.within or self.run
        part = whole is not self.run  # after which another one begins, so that a signal counts at its end as well
        if part and self.ended:
            (self.signal,) = distributed.highest(self.stop.number)
        if self.signal and (part or not self.ended):
            distributed.any_process(False)  # nobody leaves before the state is saved: torchrun would end the rest
            place = f"at step {self.counts.step} of {self.total}" + f" of the {self.label}" * part
            message = f"{place}: go on with --resume --out {whole.path}"
            raise distributed.agreed(Interrupted(message, self.signal))

    def _read_loss(self, epoch: int, logging: bool) -> None:
        counts, losses = self.counts, self.learner.losses
        loss = (losses[0] / losses[1].clamp(min=1)).item()  # of the steps that were made
        if not np.isfinite(loss):  # before anything is saved
            raise distributed.agreed(
                InputError(f"the loss of {self.run.path} became {loss} by step {counts.step}: start with a lower --lr")
            )
        counts.seconds = round(time.monotonic() - self.started, 2)
        if not logging:
            return
        losses.zero_()
        if self.main:
            self.run.log({"step": counts.step, "epoch": epoch, "loss": round(loss, 5), "seconds": counts.seconds})
        self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def _sample(self) -> None:
        counts, backbone = self.counts, self.learner.backbone
        row = {"step": counts.step, "validation_loss": self.validation.loss()}
        with moved([backbone.vae], backbone.device):
            self.validation.write_strip(self.run.path / "samples", counts.step)
            if self.agreement:
                # from masks that nothing learned from, and pure noise: no slice that the judge knows
                score = self.agreement(self.judged.draw(), self.judged.masks.cpu().numpy())
                row["mask_agreement"] = round(score, 5)
        self.run.log(row)
        curves = [["loss", "validation_loss"], ["mask_agreement"]]
        plot_progress(self.run.path / "progress.png", self.run.read_log(), curves)
        if row.get("mask_agreement", -1.0) > counts.best:
            counts.best = row["mask_agreement"]
            self.run.save(State(counts), self.save_model, "best")
