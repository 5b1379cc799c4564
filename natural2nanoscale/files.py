"""Files and folders that are whole or not there: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from natural2nanoscale.errors import InputError
from natural2nanoscale.locks import locked
from natural2nanoscale.records import open_regular

LEFTOVER = re.compile(r"\.(.+\.(tmp|lock)|lock)")  # the names that `temporary` gives, and those of locks


def temporary(path: Path) -> Path:
    """Where a file or folder is written before it gets its name: hidden, beside it."""
    return path.with_name(f".{path.name}.tmp")


def clear(path: Path) -> None:
    """Remove a file, a link or a folder; what a link points to stays."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def make_folder(path: Path) -> Path:
    """A folder of ours within another one, new or there already. InputError for a link, which leads who knows where."""
    refuse_link(path)
    path.mkdir(exist_ok=True)
    return path


def refuse_link(path: Path) -> None:
    """Raise InputError for a link where a folder of ours is to be."""
    if path.is_symlink():
        raise InputError(f"{path} is a link to {os.readlink(path)}, expected a folder: remove the link")


@contextmanager
def new_file(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield the temporary file to write; at the end it is synced and takes the place of `path`.

    needed: its size in bytes where it is known. InputError when the disk is full; no temporary stays after an error.
    """
    unfinished = temporary(path)
    try:
        with enough_room(path, needed):
            clear(unfinished)  # which may be a link that somebody has put there
            unfinished.open("xb").close()
            yield unfinished
            sync(unfinished)  # else a power cut may leave a renamed file without its contents
            os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path, needed: int | None = None, fresh: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; at the end all in it is synced and it is renamed to `path`.

    A folder that has this name already steps aside first, as `.old-<name>`, and goes once the new one stands.
    With `fresh` that is an InputError instead. needed and errors: as in `new_file`; another process that makes the
    same folder just now is an InputError too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path, path.with_name(f".{path.name}.lock")):
        if fresh:
            refuse_non_empty(path)
        with _new_folder(path, needed) as unfinished:
            yield unfinished


@contextmanager
def _new_folder(path: Path, needed: int | None) -> Iterator[Path]:
    unfinished, aside = temporary(path), path.with_name(f".old-{path.name}")
    try:
        with enough_room(path, needed):
            clear(unfinished)
            unfinished.mkdir(parents=True)
            yield unfinished
            for file in sorted(unfinished.rglob("*")):
                sync(file)
            if path.exists():  # so that one of the two always stands
                clear(aside)
                os.replace(path, aside)
            os.replace(unfinished, path)
            sync(path.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file."""
    with new_file(path, len(content)) as unfinished:
        unfinished.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: object) -> None:
    """Write readable JSON."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_lines(path: Path, rows: Iterable[dict]) -> None:
    """Write JSON lines, in place of those that are there."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_lines(path: Path, rows: Iterable[dict]) -> None:
    """Append JSON lines."""
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with enough_room(path, len(content)), os.fdopen(os.open(path, flags, 0o666), "ab") as file:
        file.write(content)


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write (H,W) or (H,W,3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def holds_nothing(path: Path) -> bool:
    """Whether there is nothing at `path`, or a folder with nothing in it but what a stopped writer left behind."""
    if not path.exists():
        return True
    return path.is_dir() and all(LEFTOVER.fullmatch(entry.name) for entry in path.iterdir())


def refuse_non_empty(out: Path) -> None:
    """Raise InputError when `out` exists with anything in it: nothing of a user's is ever overwritten."""
    if not holds_nothing(out):
        raise InputError(f"{out} already exists and is not an empty folder: remove it or name another folder")


def sha256(file: Path) -> str:
    """Hexadecimal digest of a file's bytes."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until the file's bytes, or the folder's entries, are on the disk.

    Windows syncs only what is open for writing, and opens no folder, whose entries it keeps safe by itself.
    """
    if not path.is_dir():
        with path.open("r+b") as file:
            os.fsync(file.fileno())
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:  # file systems without a sync of folders
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def disk_is_full(error: Exception) -> bool:
    """Whether the error says so; that of safetensors does in its text alone."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


@contextmanager
def enough_room(path: Path, needed: int | None = None) -> Iterator[None]:
    """Within it a full disk is an InputError that names the path and, where it is known, the room it needs in bytes."""
    try:
        yield
    except Exception as error:
        if not disk_is_full(error):
            raise
        standing = next(folder for folder in path.resolve().parents if folder.is_dir())
        needs = f"needs {in_words(needed)} and" if needed else "cannot be written, the disk"
        raise InputError(
            f"no space left on the disk: {path} {needs} has {in_words(shutil.disk_usage(standing).free)}: make room, "
            "then go on"
        ) from error


def in_words(count: int) -> str:
    """Bytes as people say them: 812 kB, 4.3 GB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
