"""Two commands never write into one folder, and a crash leaves no lock behind."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from natural2nanoscale import locks
from natural2nanoscale.errors import InputError
from natural2nanoscale.files import holds_nothing, new_folder
from natural2nanoscale.locks import hold, locked, release_all
from natural2nanoscale.runs import open_run

CONFIG = {"kind": "unet", "settings": {}, "data": {}}


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked tmp_path / run."""
    code = f"""
        import sys
        from pathlib import Path
        from natural2nanoscale.locks import hold
        hold(Path({str(tmp_path / "run")!r}))
        print("held", flush=True)
        sys.stdin.read()
    """
    (tmp_path / "run").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_command_is_refused_until_the_first_one_ends_however_it_ends(tmp_path, holder):
    run = tmp_path / "run"
    assert holds_nothing(run)  # but for the lock
    for attempt in (lambda: hold(run), lambda: open_run(run, CONFIG, resume=False)):
        with pytest.raises(InputError, match="another command is writing into .*run.*wait for its end"):
            attempt()
    assert [path.name for path in run.iterdir()] == [".lock"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    open_run(run, CONFIG, resume=False)
    release_all()
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_a_process_may_take_its_own_lock_again(tmp_path):
    with locked(tmp_path):
        with locked(tmp_path):
            hold(tmp_path)
        assert (tmp_path / locks.NAME).exists()
    assert not (tmp_path / locks.NAME).exists()


def test_a_planted_link_is_no_lock(tmp_path):
    (tmp_path / locks.NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        hold(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, capsys):
    def none(_: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "_lock", none)
    with locked(tmp_path):
        pass
    assert "knows no locks" in capsys.readouterr().out


def test_a_folder_that_somebody_makes_or_has_made_is_refused(tmp_path, monkeypatch):
    with new_folder(tmp_path / "data", fresh=True) as folder:
        (folder / "a").touch()
        monkeypatch.setattr(locks, "_held", {})  # as another process sees it
        with pytest.raises(InputError, match="another command"), new_folder(tmp_path / "data", fresh=True):
            pass
        monkeypatch.undo()
    with pytest.raises(InputError, match="not an empty folder"), new_folder(tmp_path / "data", fresh=True):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
