"""Processes that train one model together, one per device, as torchrun starts them.

Each holds the whole model and takes its share of a step's slices; their gradients add up, so all make the same step.
Alone, a process passes through every function here without waiting for anybody.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta

import torch
import torch.distributed as dist

from natural2nanoscale.errors import InputError
from natural2nanoscale.signals import exit_code

# How long the others wait for the slowest: for samples, checkpoint and judge, which are the first one's alone. A
# process that ends is noticed at once; this is for machines that fall silent.
TIMEOUT = timedelta(minutes=30)


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the first one, which alone prints and writes."""
    return rank() == 0


@contextmanager
def process_group() -> Iterator[None]:
    """Within it the processes that torchrun started reach each other, and only the first one prints.

    An error ends it without farewell, for which a process that is gone would never come.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    with _contact():
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    with open(os.devnull, "w") as nowhere, redirect_stdout(sys.stdout if is_main() else nowhere):
        yield
    dist.destroy_process_group()


@contextmanager
def main_first() -> Iterator[None]:
    """The first process goes through the block, then the others do; where one fails, all leave with exit code 2."""
    if not is_main() and any_process(False):
        raise SystemExit(2)  # the first process has said why
    try:
        yield
    except BaseException:
        any_process(True)
        raise
    if is_main():
        any_process(False)  # now the others
    if any_process(False):
        raise SystemExit(2)


def any_process(flag: bool) -> bool:
    """Whether any process says so. All of them ask, and wait for each other; no device is waited for."""
    return bool(highest(flag)[0])


def same(number: int) -> bool:
    """Whether all processes have the same number (int64). All of them ask, and wait for each other."""
    high, low = highest(number, -number)
    return high == -low


def add_up_gradients(parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> None:
    """Replace every gradient, and the loss, by its sum over all processes; who has no gradient adds nothing."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    with _contact():
        for work in [dist.all_reduce(t, async_op=True) for t in (*(p.grad for p in parameters), loss)]:
            work.wait()


def agreed(error: BaseException) -> BaseException:
    """What to raise for an error that all processes come to: the first one tells, the others only leave."""
    return error if is_main() else SystemExit(exit_code(error) if isinstance(error, KeyboardInterrupt) else 2)


def highest(*numbers: int) -> list[int]:
    """The largest of each number over all processes. All of them ask, and wait for each other."""
    if world_size() == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.int64)
    with _contact():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


@contextmanager
def _contact() -> Iterator[None]:
    """Within it a process that does not answer is an InputError."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).split(". ")[0]  # without its place in the source
        raise InputError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} has lost another one ({reason}): the run "
            "ends with what it last saved; the same command goes on from there with --resume"
        ) from error
