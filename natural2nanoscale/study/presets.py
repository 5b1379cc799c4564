"""The scales at which studies run: every budget is one of PRESETS; and where they run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from natural2nanoscale.cli import at_least, setting, size
from natural2nanoscale.phantom.volume import PhantomSettings
from natural2nanoscale.segmentation.settings import SHORT, Settings

LOOKS = 15  # at the validation slices in every training; the best of them is tested


def option(value: object, text: str, kind: Callable, flag: str | None = None, **argument: object) -> Any:
    """A field whose flag has no default: where it is not given, the preset has the value."""
    return setting(value, text, kind, flag, default=None, **argument)


@dataclass(frozen=True)
class Preset:
    """What all experiments of one scale have in common."""

    name: str
    experiments: tuple[str, ...]
    budgets: dict[str, Settings]  # of every U-Net; the first one serves all experiments but "budget"
    ratios: tuple[float, ...] = (16.0,)  # added slices per annotated one in figure6
    scarce: tuple[int, ...] = option(
        (2,), "numbers of annotated slices, where an experiment does not take all", at_least(1), "--slices",
        dest="scarce", nargs="+",
    )  # fmt: skip
    scarce_ratio: float = option(
        16.0, "synthetic slices per annotated one of these", at_least(0.01, float), "--per-mask", dest="scarce_ratio"
    )
    slices: int | None = None  # annotated slices at most; None: all of train/
    redraws: int = option(1, "repetitions with other slices, ControlNets and U-Nets", at_least(1))
    seeds: int = option(1, "U-Nets per training set and redraw", at_least(1))
    seed: int = option(0, "seed of everything that is drawn", at_least(0))
    controlnet_steps: int | None = option(900, "steps of every ControlNet", at_least(1))  # None: 600 epochs
    most_copies: int = 34592  # rotated slices of table2: with 233 real ones the paper's 34,825
    block: int = 4  # consecutive test slices that the bootstrap keeps together
    phantom: PhantomSettings = PhantomSettings()
    crop: tuple[int, int] | None = option(None, "ControlNet's window in pixels", size, metavar="WxH")
    pilot: bool = False  # the first budget's steps are found by `pilot.fix_steps`
    pool: int | None = None  # slices that the annotated ones are drawn from: found where a study starts

    @property
    def budget(self) -> str:
        """Name of the budget that serves all experiments but "budget"."""
        return next(iter(self.budgets))

    @property
    def full(self) -> int | None:
        """Annotated slices where an experiment does not say how many it takes; None while the pool is not known."""
        return self.pool and min(self.slices or self.pool, self.pool)

    def with_budget(self, settings: Settings) -> Preset:
        """With another first budget."""
        return replace(self, budgets=self.budgets | {self.budget: settings})


@dataclass(frozen=True)
class Place:
    """Where a study runs and what it runs on."""

    out: Path = setting(Path("runs/experiments"), "run folder; a stopped study goes on in it", Path, metavar="DIR")
    data: Path | None = setting(None, "prepared data root (default: phantoms)", Path, metavar="DIR")
    backbone: str = setting("auto", "auto, embedded, a diffusers folder, a .safetensors file, or a hub id")
    device: str = setting("auto", "auto, cpu or cuda")
    jobs: int | None = setting(
        None, "U-Nets and ControlNets side by side, in processes of one thread (default: one per core, or one on a "
        "GPU)", at_least(1),
    )  # fmt: skip


# Long enough for all of a phantom's slices: `experiments --preset worth --unet-steps pilot` finds the number again.
EQUAL = replace(SHORT, max_steps=1500, validate_every=100, balance=0.5)
PRESETS = {
    preset.name: preset
    for preset in (
        # To the letter: 233 slices, totals of 466, 5,390 and 10,553, three U-Nets of width 64 on one ControlNet.
        Preset(
            "paper",
            ("table1", "figure6", "table2", "budget", "split", "scarcity", "augmentation", "order"),
            {
                "paper": Settings(),
                "equal": Settings(max_steps=2000, batch_size=64, full_batches=True, validate_every=50, patience=0),
            },
            ratios=(1.0, 5157 / 233, 10320 / 233),
            scarce=(4, 8, 16, 32),
            scarce_ratio=10320 / 233,
            seeds=3,
            controlnet_steps=None,
            block=5,
            phantom=PhantomSettings((896, 512), 233, 25, 65),
        ),
        # What the main claim rests on. Per redraw two ControlNets, one of them over an adapted backbone (450 s on one
        # core), 94 synthetic slices (100 s) and 11 U-Nets (100 s each): 27 minutes of one core.
        Preset("worth", ("worth",), {"equal": EQUAL}, redraws=10),
        Preset("demo", ("demo",), {"equal": EQUAL}, seeds=2),
        # Per redraw four ControlNets (600 s on one core), 256 + 112 synthetic slices (200 s) and 23 U-Nets (2,100 s):
        # three take 145 minutes of one core, 75 on two.
        Preset(
            "embedded",
            ("table1", "figure6", "scarcity"),
            {"equal": EQUAL},
            ratios=(1.0, 4.0, 8.0),
            scarce=(2, 4, 8),
            scarce_ratio=8.0,
            slices=32,
            redraws=3,
        ),
        # Per redraw six ControlNets (900 s), 704 + 32 + 144 synthetic slices (500 s) and 53 U-Nets under the equal
        # budget (4,800 s); under the paper's rule, epochs and early stopping, 200 steps for the real slices, 2 x 400
        # and 2 x 4,600 for the larger sets (600 s, fewer with early stopping). In all: three hours on two cores.
        Preset(
            "overnight",
            ("table1", "figure6", "table2", "budget", "split", "scarcity", "worth", "augmentation", "order"),
            {"equal": EQUAL, "paper": replace(EQUAL, max_steps=None, epochs=25, validate_every=None, patience=20)},
            ratios=(1.0, 8.0, 22.0),
            scarce=(2, 4, 8),
            scarce_ratio=8.0,
            slices=32,
            redraws=3,
            most_copies=6000,  # as many slices as a U-Net visits under the equal budget
        ),
    )
}


@dataclass(frozen=True)
class Grid:
    """What `calibrate` tries, beside real slices alone: every strength with every start and ratio."""

    strengths: tuple[float, ...] = setting(
        (1.0, 1.6), "scales of what ControlNet adds (default: 1 1.6)", at_least(0.0, float), nargs="+",
        metavar="SCALE",
    )  # fmt: skip
    starts: tuple[float, ...] = setting(
        (0.8, 1.0), "shares of the sampling steps that are taken (default: 0.8 1)", at_least(0.0, float), nargs="+",
        metavar="SHARE",
    )  # fmt: skip
    ratios: tuple[float, ...] = setting(
        (1.0, 4.0), "synthetic slices per real one; the most also before the real ones (default: 1 4)",
        at_least(0.01, float), nargs="+", metavar="R",
    )  # fmt: skip
    seeds: int = setting(
        2, "further U-Nets of real slices alone and of the best mix, whose means decide between them", at_least(1)
    )
    seed: int = setting(0, "seed of everything that is drawn", at_least(0))
    unet_steps: int = setting(EQUAL.max_steps, "steps of every U-Net", at_least(1))
    unet_width: int = setting(EQUAL.width, "channels at the top of the U-Nets", at_least(1))
    unet_crop: tuple[int, int] = setting(EQUAL.crop, "the U-Nets' window in pixels", size, metavar="WxH")
