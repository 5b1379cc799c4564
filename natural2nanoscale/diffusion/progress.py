"""What learns in a fine-tuning, what is shown of it as it does, and what is saved."""

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
from natural2nanoscale.diffusion.controlnet import make_controlnet, unlock
from natural2nanoscale.diffusion.memory import moved
from natural2nanoscale.diffusion.settings import FineTuning
from natural2nanoscale.diffusion.validation import Validation
from natural2nanoscale.errors import InputError
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


@dataclass(frozen=True)
class Learner:
    """The ControlNet that learns, over a backbone whose decoder may learn with it."""

    controlnet: ControlNetModel
    backbone: Backbone
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer

    @classmethod
    def begin(cls, backbone: Backbone, settings: FineTuning, initial: ControlNetModel | None) -> Learner:
        """From `initial`, or from a copy of the U-Net's encoder."""
        controlnet = (initial or make_controlnet(backbone, settings.seed)).train()
        groups = [{"params": list(controlnet.parameters())}]
        if settings.unlock_decoder:
            backbone = unlock(backbone, "decoder")
            decoder = [parameter for parameter in backbone.unet.parameters() if parameter.requires_grad]
            groups.append({"params": decoder, "lr": settings.unlock_decoder * settings.learning_rate})
        parameters = [parameter for group in groups for parameter in group["params"]]
        return cls(controlnet, backbone, parameters, torch.optim.Adam(groups, lr=settings.learning_rate, fused=True))


class Looks:
    """What is looked at while a ControlNet learns: strips of samples, validation loss and, with a judge, agreement."""

    def __init__(
        self,
        learner: Learner,
        data: TrainingData,
        settings: FineTuning,
        samples: Path,
        agreement: Callable[[np.ndarray, np.ndarray], float] | None = None,
    ):
        """samples: the folder of the strips; agreement: as `training.fine_tune` takes it."""
        given = learner.backbone, data.val, data.prompts, settings
        self.controlnet, self.samples, self.agreement = learner.controlnet, samples, agreement
        self.validation = Validation(*given)
        self.judged = Validation(*given, JUDGED_MASKS) if agreement else None

    def strip(self, step: int) -> None:
        """Write a strip real | mask | synthetic."""
        self.validation.write_samples(self.controlnet, self.samples, step)

    def __call__(self, step: int) -> dict:
        """A strip, and what the log says of it."""
        backbone, row = self.validation.backbone, {"validation_loss": self.validation.loss(self.controlnet)}
        with moved([backbone.vae], backbone.device):
            self.strip(step)
            if self.judged:
                # from masks that nothing learned from, and pure noise: no slice that the judge knows
                score = self.agreement(self.judged.draw(self.controlnet), self.judged.masks.cpu().numpy())
                row["mask_agreement"] = round(score, 5)
        return row


class Progress:
    """Within it a training shows how it goes: after each step `look`, then `save`.

    The first process does both; the others wait for it where all meet next, and its clock is theirs.
    """

    def __init__(
        self,
        run: RunFolder,
        state: State,
        settings: FineTuning,
        total: int,
        looks: Callable[[int], dict],
        save_model: Callable[[Path], None],
        label: str = "ControlNet",
    ):
        """state: of a Counts and of `losses` (2,), the sum and number of those since the log's last line. looks: called
        with the step every so often for what the log says then; its `strip(0)` shows the beginning."""
        self.run, self.state, self.settings, self.total = run, state, settings, total
        self.looks, self.save_model, self.label, self.main = looks, save_model, label, distributed.is_main()

    def __enter__(self) -> Progress:
        counts = self.state.counts
        self.started = time.monotonic() - counts.seconds
        self.timer = SavingTimer(self.settings.checkpoint_minutes, first=counts.step == 0)
        if self.main and counts.step == 0:
            self.looks.strip(0)
        self.stop = StopSignal().__enter__()
        self.bar = tqdm(total=self.total, initial=counts.step, desc=self.label, unit="step", disable=not self.main)
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        self.stop.__exit__(*exception)

    def look(self, epoch: int) -> None:
        """Log the loss every so often; less often draw samples, take the validation loss and the mask agreement."""
        step, every = self.state.counts.step, self.settings.checkpoint_every
        self.bar.update()
        self.ended = step == self.total
        self.signal, due = distributed.highest(self.stop.number, self.main and self.timer.due())
        logging = step % LOG_EVERY == 0 or step % every == 0 or self.ended or bool(self.signal)
        self.saving = step % every == 0 or self.ended or bool(self.signal or due)
        if logging or self.saving:
            self._read_loss(epoch, logging)
        if self.main and (step % self.settings.sample_every == 0 or self.ended):
            self._sample()

    def save(self) -> None:
        """Write a checkpoint where one is due; leave by Interrupted where a stop was asked for."""
        counts = self.state.counts
        if self.main and self.saving:
            self.run.save(self.state, self.save_model, keep=self.settings.keep)
            self.timer.saved()
        if self.signal and not self.ended:
            distributed.any_process(False)  # nobody leaves before the state is saved: torchrun would end the rest
            out = (self.run.within or self.run).path
            whose = "" if self.run.within is None else f" of the {self.label}"
            message = f"at step {counts.step} of {self.total}{whose}: go on with --resume --out {out}"
            raise distributed.agreed(Interrupted(message, self.signal))

    def _read_loss(self, epoch: int, logging: bool) -> None:
        counts, losses = self.state.counts, self.state.parts["losses"]
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
        counts = self.state.counts
        row = {"step": counts.step} | self.looks(counts.step)
        self.run.log(row)
        curves = [["loss", "validation_loss"], ["mask_agreement"]]
        plot_progress(self.run.path / "progress.png", self.run.read_log(), curves)
        if row.get("mask_agreement", -1.0) > counts.best:
            counts.best = row["mask_agreement"]
            self.run.save(State(counts), self.save_model, "best")
