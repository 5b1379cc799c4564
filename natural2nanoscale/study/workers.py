"""Pieces of a study carried out here, one after the other, or side by side in processes of one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait

Work = Callable[..., dict | None]  # a function of a module, which processes find by its name
PATIENCE = 120  # seconds that a process has to save what it is at


class Here:
    """The one worker that this process is itself."""

    def __init__(self, work: Work):
        self.work, self.task, self.free = work, None, 1

    def start(self, task: tuple) -> None:
        self.task, self.free = task, 0

    def wait(self) -> tuple[tuple, dict | None]:
        """Carry the task out that was started: it, and what it gave."""
        self.free = 1
        return self.task, self.work(*self.task)

    def close(self, stop: bool) -> None:
        pass


class Processes:
    """`count` processes that are started anew, not forked, so that each is as another and none inherits threads."""

    def __init__(self, work: Work, count: int):
        context = multiprocessing.get_context("spawn")
        self.idle: list[Connection] = []
        self.busy: dict[Connection, tuple] = {}
        self.members = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            self.members.append(context.Process(target=serve, args=(theirs, work.__module__, work.__name__)))
            self.members[-1].start()
            theirs.close()
            self.idle.append(ours)

    @property
    def free(self) -> int:
        return len(self.idle)

    def start(self, task: tuple) -> None:
        connection = self.idle.pop()
        connection.send(task)
        self.busy[connection] = task

    def wait(self) -> tuple[tuple, dict | None]:
        """The first task that ends, and what it gave; raises what it raised."""
        connection = wait(list(self.busy))[0]
        task = self.busy.pop(connection)
        try:
            found, error = connection.recv()
        except EOFError:
            raise MemoryError("a process of --jobs was ended from outside, often for want of memory") from None
        if error is not None:
            raise error
        self.idle.append(connection)
        return task, found

    def close(self, stop: bool) -> None:
        """Let all go; with `stop` whoever is at work saves what it can and leaves it."""
        for member in self.members:
            if stop:
                member.terminate()
        for connection in (*self.idle, *self.busy):
            connection.close()
        for member in self.members:
            member.join(PATIENCE)
            if member.is_alive():
                member.kill()


def serve(connection: Connection, module: str, name: str) -> None:
    """A process: take tasks until there are none. It outlives neither its parent nor SIGTERM."""
    if hasattr(os, "setsid"):
        os.setsid()  # out of the terminal's reach
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    with open(os.devnull, "w") as nowhere:  # bars of several processes would overwrite one another
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        import torch

        torch.set_num_threads(1)
        work = getattr(__import__(module, fromlist=[name]), name)
        while True:
            task = connection.recv()
            try:
                connection.send((work(*task), None))
            except KeyboardInterrupt:
                raise
            except Exception as error:
                error.add_note(traceback.format_exc())
                connection.send((None, error))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass  # the parent has let go of it


def leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)
