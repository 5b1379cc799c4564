"""Two commands never write into one folder: a lock of the operating system, which a crash does not leave behind."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from natural2nanoscale.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

NAME = ".lock"
_held: dict[Path, int] = {}  # file -> open descriptor; what this process holds it may take again


def hold(folder: Path, file: Path | None = None) -> None:
    """Lock a folder until `release_all`, or until the process ends, however it ends.

    file: the lock's, by default `.lock` in the folder. InputError where another process holds it. A file system
    without locks is told of, and the folder taken as free.
    """
    file = (file or folder / NAME).absolute()
    if file in _held:
        return
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
                raise InputError(
                    f"another command is writing into {folder} (it holds {file}): wait for its end, or name another "
                    "folder"
                ) from None
            print(f"note: {file.parent} knows no locks ({error.strerror}): let no other command write into it")
            return
        with suppress(OSError):
            if os.path.samestat(os.stat(file), os.fstat(descriptor)):  # else its last holder has just removed it
                _held[file] = descriptor
                return
        os.close(descriptor)


def release(file: Path) -> None:
    """Give a lock of `hold` back, and remove its file."""
    descriptor = _held.pop(file.absolute())
    if fcntl:  # while it is held, so that nobody's new lock is removed
        with suppress(OSError):
            file.unlink()
    os.close(descriptor)
    if not fcntl:
        with suppress(OSError):
            file.unlink()


def release_all() -> None:
    """Give back all locks of this process."""
    for file in list(_held):
        release(file)


@contextmanager
def locked(folder: Path, file: Path | None = None) -> Iterator[None]:
    """`hold` within the block; within another one for the same folder it changes nothing."""
    path = (file or folder / NAME).absolute()
    had = path in _held
    hold(folder, file)
    try:
        yield
    finally:
        if not had and path in _held:
            release(path)


def _lock(descriptor: int) -> None:
    if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
