"""How a ControlNet is fine-tuned and how slices are drawn; apart from torch, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FineTuning:
    """Settings of the loop; the defaults are the paper's (4.4) where it names them."""

    crop: tuple[int, int]  # width, height of the training windows in pixels
    learning_rate: float  # 1e-5 for Stable Diffusion 1.5; a backbone carries its own
    epochs: int = 600
    max_steps: int | None = None  # replaces epochs
    batch_size: int = 2  # slices that pass at once
    accumulate: int = 1  # batches whose gradients add up to one step
    processes: int = 1  # that the run began with, each with batches of its own; any number resumes it alike
    rotation: float = 16.0  # degrees, uniform in [-rotation, rotation]; corners mirror image and mask alike
    noise: float = 4.0  # Gaussian noise in grey levels; each window draws its own strength in [0, noise]
    latent_variants: int = 16  # augmented windows per slice whose latents are cached; 0 encodes every step
    condition: str = "mask"  # what the ControlNet sees: class colours, or "mask+edges", with edges drawn onto them
    edge_dropout: float = 0.5  # share of samples without the slice's edges, so that a mask alone is enough to draw from
    prompt_dropout: float = 0.0  # share of samples that see the empty prompt, which guidance 1 never asks for
    max_weight: float = 1.0  # largest weight of a noisy timestep in the loss; 1 is the plain loss
    clip: float = 1.0  # largest norm of the gradient
    unlock_decoder: float = 0.0  # learning rate of the U-Net's decoder, in parts of learning_rate; 0: frozen
    gradient_checkpointing: bool = False  # run layers again in the backward pass: less memory, more time
    compile: bool = False  # torch.compile, with CUDA graphs where there is CUDA
    seed: int = 0
    checkpoint_every: int = 1000  # steps
    checkpoint_minutes: float = 10.0  # and minutes, whichever come first; the first is due after one; 0: steps alone
    keep: int = 2  # newest checkpoints that stay
    sample_every: int = 1000  # steps between sample strips and validations

    @property
    def slices_per_step(self) -> int:
        """Slices whose gradients make one step, over all processes."""
        return self.batch_size * self.accumulate * self.processes

    def steps_per_epoch(self, slices: int) -> int:
        """Optimiser steps in which each of that many slices is seen once."""
        return -(-slices // self.slices_per_step)

    def total_steps(self, slices: int) -> int:
        """Optimiser steps for a training set of that many slices."""
        return self.max_steps or self.epochs * self.steps_per_epoch(slices)


MAY_CHANGE = (
    "epochs",
    "max_steps",
    "checkpoint_every",
    "checkpoint_minutes",
    "keep",
    "sample_every",
    "gradient_checkpointing",
)


@dataclass(frozen=True)
class SamplingSettings:
    """How a slice is drawn from its mask."""

    steps: int = 20
    guidance: float = 1.0  # classifier-free guidance scale; 1 is none and costs half
    strength: float = 1.0  # scale of what ControlNet adds to the U-Net
    eta: float = 0.0  # 0 is deterministic DDIM, 1 has the noise of DDPM
    start: float = 1.0  # share of the steps taken; below 1 they begin at the mask's real slice, noised accordingly
    condition: str = "mask"  # what is drawn from; "mask+boundaries" and "mask+edges": for ControlNets that see edges

    @property
    def steps_taken(self) -> int:
        """The share `start` of the steps, rounded down."""
        return int(self.steps * self.start + 1e-6)  # 50 * 0.58 is 28.999999999999996
