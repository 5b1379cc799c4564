"""How a ControlNet is fine-tuned and slices are drawn, and by which prompts; apart from torch: help is quick."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from natural2nanoscale.cli import at_least, setting, size
from natural2nanoscale.errors import InputError
from natural2nanoscale.records import LARGEST, open_regular

nonnegative = at_least(0.0, float)


@dataclass(frozen=True)
class FineTuning:
    """Settings of the loop; the defaults are the paper's (4.4) where it names them."""

    crop: tuple[int, int] = setting(
        MISSING, "training window, width and height in pixels (default: the backbone's)", size, metavar="WxH"
    )
    learning_rate: float = setting(
        MISSING, "learning rate (default: the backbone's)", nonnegative, "--lr", metavar="LR"
    )
    epochs: int = setting(600, "passes over the training slices", at_least(1))
    max_steps: int | None = setting(None, "optimiser steps, in place of --epochs", at_least(1))
    batch_size: int = setting(2, "slices that pass at once, per process", at_least(1))
    accumulate: int = setting(1, "batches per step; their gradients add up", at_least(1))
    processes: int = 1  # that the run began with, each with batches of its own; any number resumes it alike
    rotation: float = setting(
        16.0, "largest angle in degrees; corners mirror image and mask alike", nonnegative, metavar="DEGREES"
    )
    noise: float = setting(
        4.0, "largest Gaussian noise in grey levels; each window draws its own", nonnegative, metavar="LEVELS"
    )
    latent_variants: int = setting(
        16, "augmented windows per slice whose latents are cached; 0 encodes at every step", at_least(0), metavar="K"
    )
    condition: str = setting(
        "mask",
        "what the ControlNet sees: the classes' colours, or with their boundaries and the slices' edges on them",
        choices=("mask", "mask+edges"),
    )
    edge_dropout: float = 0.5  # share of samples without the slice's edges, so that a mask alone is enough to draw from
    prompt_dropout: float = setting(
        0.0, "share of samples with the empty prompt; of use when slices are drawn with --guidance above 1",
        nonnegative, metavar="P",
    )  # fmt: skip
    max_weight: float = setting(
        1.0, "largest weight of a noisy timestep in the loss; 1 is the plain loss (default: the backbone's)",
        at_least(1.0, float), metavar="W",
    )  # fmt: skip
    clip: float = setting(1.0, "largest norm of the gradient", at_least(1e-6, float), metavar="NORM")
    unlock_decoder: float = setting(
        0.0, "let the U-Net's decoder learn, at FACTOR (0.1 if not given) times the learning rate; 0 keeps it frozen",
        nonnegative, nargs="?", const=0.1, metavar="FACTOR",
    )  # fmt: skip
    adapt: int = setting(
        0, "steps in which the U-Net first learns slices without masks, those of unlabelled/ and train/", at_least(0),
        metavar="STEPS",
    )  # fmt: skip
    adapt_part: str = setting(
        "all", "what of the U-Net adapts to them: `attention` or `decoder` where memory is short",
        choices=("all", "decoder", "attention"),
    )  # fmt: skip
    adapt_learning_rate: float | None = setting(
        None, "learning rate of --adapt, falling to zero (default: the backbone's)", nonnegative, "--adapt-lr",
        metavar="LR",
    )  # fmt: skip
    gradient_checkpointing: bool = setting(False, "less memory, more time, the same gradients")
    compile: bool = setting(False, "torch.compile; minutes at the start, less time per step on a GPU")
    seed: int = setting(0, "seed of everything that is drawn", at_least(0))
    checkpoint_every: int = setting(1000, "steps between checkpoints", at_least(1), metavar="STEPS")
    checkpoint_minutes: float = setting(
        10.0, "minutes between checkpoints, whichever come first; the first is due after one; 0: by steps alone",
        nonnegative, metavar="MINUTES",
    )  # fmt: skip
    keep: int = setting(2, "newest checkpoints that stay", at_least(1))
    sample_every: int = setting(1000, "steps between looks at samples and validation", at_least(1), metavar="STEPS")

    def __post_init__(self) -> None:
        if self.prompt_dropout > 1:
            raise InputError(f"--prompt-dropout {self.prompt_dropout:g} is no share, expected 0 to 1")

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


MAY_CHANGE = (  # on --resume
    "epochs", "max_steps", "checkpoint_every", "checkpoint_minutes", "keep", "sample_every", "gradient_checkpointing",
)  # fmt: skip


@dataclass(frozen=True)
class SamplingSettings:
    """How a slice is drawn from its mask."""

    sampler: str = setting(
        "ddim", "solver of the sampling steps; the others need fewer of them", choices=("ddim", "dpm++", "unipc")
    )
    steps: int = setting(20, "sampling steps", at_least(1))
    guidance: float = setting(1.0, "guidance scale; 1 is none, and costs half", at_least(1.0, float), metavar="SCALE")
    strength: float = setting(
        1.0, "scale of what ControlNet adds to the U-Net (default: the backbone's)", nonnegative,
        metavar="SCALE",
    )  # fmt: skip
    eta: float = setting(0.0, "0 is deterministic DDIM, 1 as noisy as DDPM", nonnegative, metavar="ETA")
    start: float = setting(
        1.0, "share of the steps taken; below 1 they begin at the mask's real slice (default: the backbone's)",
        nonnegative, metavar="SHARE",
    )  # fmt: skip
    detail: bool = setting(False, "give back the detail of the mask's real slice that the VAE cannot hold")
    keep: float = setting(
        0.0, "share of a slice's pixels that stay as they are: those of whose predicted class the U-Net is surest",
        nonnegative, metavar="SHARE",
    )  # fmt: skip
    condition: str = "mask"  # what is drawn from; "mask+boundaries" and "mask+edges": for ControlNets that see edges

    def __post_init__(self) -> None:
        if self.eta > 1 or self.steps > 500:
            raise InputError(f"--eta {self.eta:g} --steps {self.steps}: expected eta from 0 to 1 and at most 500 steps")
        if self.eta > 0 and self.sampler != "ddim":
            raise InputError(f"--eta {self.eta:g} is for --sampler ddim, found {self.sampler}: leave one of them out")
        if self.start > 1 or self.steps_taken < 1:
            raise InputError(
                f"--start {self.start:g} of {self.steps} steps leaves none, expected more than 0, at most 1"
            )
        if self.keep >= 1:
            raise InputError(f"--keep {self.keep:g} leaves nothing to draw, expected a share from 0 to below 1")

    @property
    def steps_taken(self) -> int:
        """The share `start` of the steps, rounded down."""
        return int(self.steps * self.start + 1e-6)  # 50 * 0.58 is 28.999999999999996

    @property
    def sees_slice(self) -> bool:
        """Whether the real slice of a mask is looked at."""
        return self.start < 1 or self.condition == "mask+edges" or self.detail or self.keep > 0


FAST = {"sampler": "unipc", "steps": 6}  # what --fast stands for, in bfloat16


def read_prompts(file: Path | None = None) -> list[str]:
    """One prompt per line of a text file; empty lines do not count. Default: the 37 prompts of the package."""
    file = file or Path(__file__).with_name("prompts.txt")
    try:
        with open_regular(file) as opened:
            lines = opened.read(LARGEST).decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {file} cannot be read ({error}): expected a text file") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"--prompts {file} holds no prompt, expected one per line")
    return prompts
