"""Pieces of a study carried out here, one after the other, or side by side in processes of one thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait

from natural2nanoscale.errors import InputError

PATIENCE = 120  # seconds that a process has to save what it is at


def carried_out(work: Callable, jobs: int, following: Callable) -> Iterator[tuple]:
    """Tasks and what `work`, a function of a module, gave for them, as they end; to be closed by whoever takes them.

    following: the next task, whenever a process is free; None while there is none. The end is where no task is left.
    """
    if jobs <= 1:
        while task := following():
            yield task, work(task)
        return
    with processes(jobs) as idle:
        busy = {}
        while True:
            while idle and (task := following()):
                connection = idle.pop()
                connection.send((work, task))
                busy[connection] = task
            if not busy:
                return
            connection = wait(list(busy))[0]
            task = busy.pop(connection)
            try:
                found, error = connection.recv()
            except EOFError:
                raise InputError(
                    "a process of --jobs was ended from outside, often for want of memory: the same command goes on, "
                    "with fewer --jobs if need be"
                ) from None
            if error is not None:
                raise error
            idle.append(connection)
            yield task, found


@contextmanager
def processes(count: int) -> Iterator[list[Connection]]:
    """Connections to processes that are started anew, not forked, so that each is as another and none inherits threads.

    At the end they are let go; where it came early, whoever is at work saves what it can and leaves it.
    """
    context, members, connections = multiprocessing.get_context("spawn"), [], []
    finished = False
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            members.append(context.Process(target=serve, args=(theirs,)))
            members[-1].start()
            theirs.close()
            connections.append(ours)
        yield list(connections)
        finished = True
    finally:
        for member in members:
            if not finished:
                member.terminate()
        for connection in connections:
            connection.close()
        for member in members:
            member.join(PATIENCE)
            if member.is_alive():
                member.kill()


def serve(connection: Connection) -> None:
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
        while True:
            work, task = connection.recv()
            try:
                connection.send((work(task), None))
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
