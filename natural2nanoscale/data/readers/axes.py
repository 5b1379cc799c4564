"""What the axes of an array are, and where its slices lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from natural2nanoscale.data.readers.base import ReadOptions
from natural2nanoscale.errors import InputError

SPARE = "ABDEFGHIJKLMNOPQ"  # names of axes that say nothing


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
    notes, given = (), options.axes
    if given and options.labels:
        axes, given = _for_labels(shape, axes, options)
    certain = axes is not None and axes[0] in "ZT"
    if given:
        axes, certain = _given(what, shape, given, axes), True
    elif axes is None:
        axes = _guessed(what, shape)
    if "S" in axes and samples == 1:  # samples that are no colour are channels
        axes = axes.replace("S", "C") if "C" not in axes else _ask_axes(what, shape)
    if len(axes) != len(shape) or len(set(axes)) < len(axes) or not {"Y", "X"} <= set(axes):
        raise InputError(f"{what} has the axes {axes} for the shape {shape}: name them with `--axes {_example(shape)}`")
    channels, channel = shape[axes.index("C")] if "C" in axes else 1, options.channel
    if channels == 1 or options.split_channels:
        channel = 0 if "C" in axes and not options.split_channels else None
    elif channel is None or channel >= channels:
        how = "pass `--one-hot` if each is the mask of one class"
        if not options.labels:
            last = f", ..., `--channel {channels - 1}`" if channels > 2 else " or `--channel 1`"
            how = f"choose one with `--channel 0`{last}"
        slices = "".join(name for name, n in zip(axes.replace("C", "Z"), shape, strict=True) if n > 1)
        if channels > 4 and len(slices) == 3 and "Z" in slices:  # a stack whose slices were saved as channels
            how += f", or pass `--axes {slices}` if these are its slices"
        raise InputError(f"{what} has {channels} channels: {how}")
    order = [i for i, name in enumerate(axes) if name not in "YXSC"]
    order += [axes.index("C")] if options.split_channels and "C" in axes else []
    if not certain and len(axes) == 3 and axes[1:] == "YX" and shape[2] * 4 <= min(shape[:2]):
        notes = (
            f"{what} is read as {shape[0]} slices of {shape[2]}x{shape[1]}: if its slices lie along the last axis, "
            "pass `--axes YXZ`",
        )
    return Layout(axes, tuple(shape), tuple(order), channel, notes)


def _for_labels(shape: tuple[int, ...], said: str | None, options: ReadOptions) -> tuple[str | None, str | None]:
    """The axes that a file of masks says, and --axes where these are meant for it: it has the shape of the slices'
    array, but for their channels, and does not itself say other axes than the slices' file that fit as well."""
    given, alike = options.axes, said == options.said
    if said and "Z" in given and not {"Z"} & set(said) and "C" not in given and not options.split_channels:
        said = said.replace("C", "Z")
    if len(given) != len(options.shape):
        return said, given if len(given) == len(shape) and not options.shape else None
    wanted = {name: n for name, n in zip(given, options.shape, strict=True) if name != "C"}
    if said and not alike and dict(zip(said, shape, strict=True)) == wanted:
        return said, None
    if shape == options.shape:
        return said, given
    return said, "".join(wanted) if shape == tuple(wanted.values()) else None


def _given(what: object, shape: tuple[int, ...], given: str, said: str | None) -> str:
    """--axes, where it fits the array; axes of length one need no name, and a picture of two axes needs none."""
    if len(given) == len(shape):
        return given
    if len(given) == sum(n > 1 for n in shape):
        return _spread(given, shape)
    if said is not None and len(shape) < len(given):
        return said
    if len(shape) == 2:
        return "YX"
    raise InputError(f"{what} has {len(shape)} axes {shape}, but --axes {given} names {len(given)}")


def _guessed(what: object, shape: tuple[int, ...]) -> str:
    """Axes of an array that does not name them: slices first. Axes of length one say nothing."""
    long = [n for n in shape if n > 1]
    if len(shape) > 2 and len(long) in (2, 3):
        named = _spread("ZYX"[-len(long) :], shape)
    elif len(shape) in (2, 3):
        named, long = "ZYX"[-len(shape) :], shape
    elif len(shape) < 2 or len(long) < 2:
        raise InputError(f"{what} has the shape {shape}, expected slices of two axes: name another array")
    if len(long) > 3 or (len(long) == 3 and long[2] <= 4 < min(long[:2])):
        _ask_axes(what, shape)
    return named


def _spread(names: str, shape: tuple[int, ...]) -> str:
    """Names for the axes that are longer than one; the others get letters that say nothing."""
    said, spare = iter(names), iter(SPARE)
    return "".join(next(said if n > 1 else spare) for n in shape)


def _example(shape: tuple[int, ...]) -> str:
    if shape[-1] in (3, 4) and len(shape) in (3, 4):
        return "ZYXS"[-len(shape) :]
    if len(shape) == 3 and shape[2] == 2:
        return "YXC"
    return {2: "YX", 4: "ZCYX", 5: "TZCYX"}.get(len(shape), "ZYX")


def _ask_axes(what: object, shape: tuple[int, ...]) -> str:
    third = " (colour), `--axes YXC` (channels)" if len(shape) == 3 and shape[2] in (3, 4) else ""
    raise InputError(
        f"{what} is an array of shape {shape} that does not name its axes: name them, such as "
        f"`--axes {_example(shape)}`{third} or `--axes {'YXZ' if len(shape) == 3 else 'CZYX'}`"
    )
