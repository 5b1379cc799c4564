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
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from natural2nanoscale.errors import InputError
from natural2nanoscale.locks import locked
from natural2nanoscale.records import open_regular
from natural2nanoscale.schemas import FORMAT

LEFTOVER = re.compile(r"\.(.+\.(tmp|lock)|lock)")  # what a stopped writer leaves behind: temporaries and locks


@contextmanager
def _unfinished(path: Path, needed: int | None) -> Iterator[Path]:
    """Yield the name, hidden and beside `path`, under which it is written, with nothing there; nor after an error."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with enough_room(path, needed):
            clear(temporary)  # which may be a link that somebody has put there
            yield temporary
    except BaseException:
        with suppress(OSError):
            clear(temporary)
        raise


@contextmanager
def new_file(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Yield the temporary file to write; at the end it is synced and takes the place of `path`.

    needed: its size in bytes where it is known. InputError when the disk is full; no temporary stays after an error.
    """
    with _unfinished(path, needed) as temporary:
        temporary.open("xb").close()
        yield temporary
        sync(temporary)  # else a power cut may leave a renamed file without its contents
        os.replace(temporary, path)


@contextmanager
def new_folder(path: Path, needed: int | None = None, fresh: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; at the end all in it is synced and it is renamed to `path`.

    A folder that has this name already steps aside first, as `.old-<name>`, and goes once the new one stands.
    With `fresh` that is an InputError instead. needed and errors: as in `new_file`; another process that makes the
    same folder just now is an InputError too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".old-{path.name}")
    with locked(path, path.with_name(f".{path.name}.lock")):
        if fresh:
            refuse_non_empty(path)
        with _unfinished(path, needed) as temporary:
            temporary.mkdir()
            yield temporary
            for file in sorted(temporary.rglob("*")):
                sync(file)
            if path.exists():  # so that one of the two always stands
                clear(aside)
                os.replace(path, aside)
            os.replace(temporary, path)
            sync(path.parent)
        shutil.rmtree(aside, ignore_errors=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file."""
    with new_file(path, len(content)) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: dict | list) -> None:
    """Write `json_text`."""
    write_text(path, json_text(data) + "\n")


def json_text(data: dict | list) -> str:
    """Data as readable JSON; an object says its format."""
    return json.dumps({"format": FORMAT} | data if isinstance(data, dict) else data, indent=2)


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
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:  # file systems without a sync of folders
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def enough_room(path: Path, needed: int | None = None) -> Iterator[None]:
    """Within it a full disk is an InputError that names the path and, where it is known, the room it needs in bytes."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and "No space left on device" not in str(error):  # as safetensors says it
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
