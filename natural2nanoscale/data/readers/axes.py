"""What the axes of an array are, and where its slices lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from natural2nanoscale.data.readers.base import ReadOptions
from natural2nanoscale.errors import InputError


@dataclass(frozen=True)
class Layout:
    """Where the slices of an array lie: axes names each axis, outer are the positions of those that count slices."""

    axes: str
    shape: tuple[int, ...]
    outer: tuple[int, ...]
    channel: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return math.prod(self.shape[axis] for axis in self.outer)

    @property
    def channels(self) -> int:
        return self.shape[self.axes.index("C")] if "C" in self.axes else 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.shape[self.axes.index("X")], self.shape[self.axes.index("Y")]

    def index(self, number: int) -> tuple[int | slice, ...]:
        """What selects slice `number` in the array."""
        place = np.unravel_index(number, [self.shape[axis] for axis in self.outer]) if self.outer else ()
        chosen = dict(zip(self.outer, map(int, place), strict=True))
        if self.channel is not None:
            chosen[self.axes.index("C")] = self.channel
        return tuple(chosen.get(axis, slice(None)) for axis in range(len(self.axes)))

    def upright(self, plane: np.ndarray) -> np.ndarray:
        """What `index` selected as (H,W), or (H,W,S) with the samples of a colour."""
        left = [name for name, chosen in zip(self.axes, self.index(0), strict=True) if isinstance(chosen, slice)]
        return plane.transpose([left.index(name) for name in "YXS" if name in left])


def find_layout(
    what: object, shape: tuple[int, ...], axes: str | None, options: ReadOptions, samples: int = 1
) -> Layout:
    """The layout of an array whose axes its file names, or None; InputError with the flag to pass where it is unclear.

    samples: length of the axis S of a colour picture, 1 if there is none.
    """
    notes, said = [], axes is not None and axes[0] in "ZT"
    given = _for_labels(shape, options) if options.labels else options.axes
    if given:
        axes = _given(what, shape, given, axes)
    elif axes is None:
        axes, notes = _guessed(what, shape)
    if axes.count("S") and samples == 1:  # samples that are no colour are channels
        axes = axes.replace("S", "C") if "C" not in axes else _ask_axes(what, shape)
    if len(axes) != len(shape) or len(set(axes)) < len(axes) or not {"Y", "X"} <= set(axes):
        raise InputError(f"{what} has the axes {axes} for the shape {shape}: name them with `--axes {_example(shape)}`")
    if "C" in axes and shape[axes.index("C")] > 1 and not options.split_channels:
        count = shape[axes.index("C")]
        if options.channel is None or options.channel >= count:
            if options.labels:
                raise InputError(f"{what} has {count} channels: pass `--one-hot` if each is the mask of one class")
            last = f", ..., `--channel {count - 1}`" if count > 2 else " or `--channel 1`"
            raise InputError(f"{what} has {count} channels: choose one with `--channel 0`{last}")
        channel = options.channel
    else:
        channel = None
        if options.channel:
            raise InputError(f"{what} has one channel, found --channel {options.channel}: leave it out")
    order = [i for i, name in enumerate(axes) if name not in "YXSC"]
    order += [axes.index("C")] if options.split_channels and "C" in axes else []
    if not said and not given:
        _check_odd(what, axes, shape, notes)
    if channel is None and "C" in axes and not options.split_channels:
        channel = 0  # the only one
    return Layout(axes, tuple(shape), tuple(order), channel, tuple(notes))


def _for_labels(shape: tuple[int, ...], options: ReadOptions) -> str | None:
    """--axes for an array of masks: where it has the shape of the slices' array, but for their channels."""
    if not options.axes or len(options.axes) != len(options.shape):
        return options.axes if len(options.axes or "") == len(shape) and not options.shape else None
    kept = [(name, n) for name, n in zip(options.axes, options.shape, strict=True) if name != "C"]
    if shape == options.shape:
        return options.axes
    return "".join(name for name, _n in kept) if shape == tuple(n for _name, n in kept) else None


def _given(what: object, shape: tuple[int, ...], given: str, said: str | None) -> str:
    """--axes, where it fits the array; a picture of two axes needs none."""
    real = [i for i, n in enumerate(shape) if n > 1]
    if len(given) == len(shape):
        return given
    if len(given) == len(real):  # axes of length one need no name
        names = iter(given)
        spare = iter("ABDEFGHIJKLMNOPQ")
        return "".join(next(names) if i in real else next(spare) for i in range(len(shape)))
    if said is not None and len(shape) < len(given):
        return said
    if len(shape) == 2:
        return "YX"
    raise InputError(f"{what} has {len(shape)} axes {shape}, but --axes {given} names {len(given)}")


def _guessed(what: object, shape: tuple[int, ...]) -> tuple[str, list[str]]:
    """Axes of an array that does not name them: slices first."""
    spare = "ABDEFGHIJKLMNOPQ"
    lead = 0
    while len(shape) - lead > 3 and shape[lead] == 1:
        lead += 1
    rest = shape[lead:]
    if len(rest) < 2:
        raise InputError(f"{what} has the shape {shape}, expected slices of two axes: name another array")
    if len(rest) > 3 or (len(rest) == 3 and rest[2] <= 4 < min(rest[:2])):
        _ask_axes(what, shape)
    return spare[:lead] + "ZYX"[-len(rest) :], []


def _check_odd(what: object, axes: str, shape: tuple[int, ...], notes: list[str]) -> None:
    """A note where the last axis is much shorter than the others: slices may lie along it."""
    if len(axes) == 3 and axes[1:] == "YX" and shape[2] * 4 <= min(shape[:2]):
        notes.append(
            f"{what} is read as {shape[0]} slices of {shape[2]}x{shape[1]}: if its slices lie along the last axis, "
            "pass `--axes YXZ`"
        )


def _example(shape: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return "YXS" if shape[2] in (3, 4) else "YXC" if shape[2] == 2 else "ZYX"
    if len(shape) == 4 and shape[3] in (3, 4):
        return "ZYXS"
    return {2: "YX", 4: "ZCYX", 5: "TZCYX"}.get(len(shape), "ZYX")


def _ask_axes(what: object, shape: tuple[int, ...]) -> str:
    third = " (colour), `--axes YXC` (channels)" if len(shape) == 3 and shape[2] in (3, 4) else ""
    raise InputError(
        f"{what} is an array of shape {shape} that does not name its axes: name them, such as "
        f"`--axes {_example(shape)}`{third} or `--axes {'YXZ' if len(shape) == 3 else 'CZYX'}`"
    )
