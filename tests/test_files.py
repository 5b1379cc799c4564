"""Files that are whole or not there: leftovers of a stopped writer, full disks, and disks of other systems."""

import errno
import fcntl
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from natural2nanoscale import files
from natural2nanoscale.checkpoints import State
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import (
    append_lines,
    holds_nothing,
    in_words,
    new_file,
    new_folder,
    refuse_non_empty,
    save_png,
    write_json,
    write_lines,
)
from natural2nanoscale.records import read_lines
from natural2nanoscale.runs import RunFolder, open_run


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_that_exists_is_whole(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(KeyboardInterrupt), new_file(file) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(file.read_text()) == {"format": 1, "a": 1} and names(tmp_path) == ["a.json"]
    lines = tmp_path / "log.jsonl"
    append_lines(lines, [{"step": 1}, {"step": 2}])
    with lines.open("a") as log:
        log.write('{"step": 3')
    assert read_lines(lines) == [{"step": 1}, {"step": 2}] and read_lines(tmp_path / "none") == []
    write_lines(lines, [{"step": 9}])
    assert lines.read_text() == '{"step": 9}\n'


def test_folder_that_exists_is_whole_and_its_namesake_goes_last(tmp_path):
    target = tmp_path / "deep" / "folder"
    for content in ("old", "new"):
        with new_folder(target) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "file").write_text(content)
    with pytest.raises(KeyError), new_folder(target) as folder:
        (folder / "file").write_text("half")
        raise KeyError
    assert (target / "sub" / "file").read_text() == "new" and names(target.parent) == ["folder"]


def test_leftovers_of_a_stopped_writer_never_block(tmp_path, script, data_folder):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".dataset.json.tmp").write_text("{")
    (out / ".config.json.tmp").touch()
    assert holds_nothing(out) and holds_nothing(tmp_path / "nowhere") and not holds_nothing(tmp_path)
    refuse_non_empty(out)
    assert open_run(out, {"kind": "unet", "settings": {}, "data": {}}, resume=False).path == out
    with pytest.raises(InputError, match="not an empty folder"):
        refuse_non_empty(out)
    with pytest.raises(InputError, match="not an empty folder"):
        refuse_non_empty(out / "config.json")
    (data_folder / "synthetic").mkdir()
    (data_folder / "synthetic" / ".dataset.json.tmp").touch()
    error = script("generate.py", "--data", data_folder, "--controlnet", tmp_path / "none", expect=2).stderr
    assert "no pair folder" not in error and "there is no trained ControlNet" in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_full_disk_names_the_path_and_the_room_it_needs(tmp_path, monkeypatch):
    def into_full(path: Path, content: bytes) -> None:
        with open("/dev/full", "wb") as device:
            device.write(content)

    for write, room in (
        (lambda: write_json(tmp_path / "a.json", list(range(400))), "2.7 kB"),
        (lambda: save_png(tmp_path / "b.png", np.zeros((8, 8), np.uint8)), "bytes"),
    ):
        with (
            monkeypatch.context() as patch,
            pytest.raises(InputError, match=rf"no space left on the disk: .*(a.json|b.png) needs .*{room} and has \d"),
        ):
            patch.setattr(Path, "write_bytes", into_full)
            write()
    with pytest.raises(InputError, match="c.safetensors needs 4.0 MB"), new_file(tmp_path / "c.safetensors", 4_000_000):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert names(tmp_path) == []  # no temporary stays
    with monkeypatch.context() as patch, pytest.raises(InputError, match="log.jsonl needs 12 bytes"):
        patch.setattr(files.os, "open", lambda *_: os.dup(full.fileno()))
        with open("/dev/full", "wb") as full:
            RunFolder(tmp_path).log({"step": 1})
    (tmp_path / "log.jsonl").unlink(missing_ok=True)

    def fill(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match="step-000005 needs 4.0 kB and has"):
        RunFolder(tmp_path).save(State(SimpleNamespace(step=5), a=torch.zeros(1000)), fill)
    assert names(tmp_path / "checkpoints") == []
    with pytest.raises(OSError, match="Permission"), new_file(tmp_path / "d"):  # any other error stays what it is
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_sizes_in_words():
    assert [in_words(n) for n in (12, 4_300, 8.12e7, 4.33e9)] == ["12 bytes", "4.3 kB", "81.2 MB", "4.3 GB"]


def test_files_are_synced_as_windows_wants_it(tmp_path, monkeypatch):
    """There fsync refuses what is open for reading only, and a folder cannot be opened."""
    synced, opened, fsync = [], os.open, os.fsync

    def windows_open(path, flags, *mode):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *mode)

    def windows_fsync(descriptor):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        synced.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(files.os, "open", windows_open)
    monkeypatch.setattr(files.os, "fsync", windows_fsync)
    run = RunFolder(tmp_path)
    state = State(SimpleNamespace(step=5, b=1), a=torch.ones(2))
    run.save(state, lambda folder: (folder / "model").write_text("m"))
    assert run.load_checkpoint().state == {"b": 1} and len(synced) == 4  # state twice, model, manifest
