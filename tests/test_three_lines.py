"""The three lines as users type them, each in a process of its own.

At full length, in an empty folder, by one command (about an hour on one core of a server CPU):

    python tests/test_three_lines.py FOLDER
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINES = (
    "python train_controlnet.py --epochs 600",
    "python generate.py",
    "python train_unet.py --synthetic-ratio 1.0",
)


def run_lines(folder: Path) -> None:
    """The three lines in `folder`, which gets links to the scripts; prints the seconds that each took."""
    for name in ("train_controlnet.py", "generate.py", "train_unet.py"):
        (folder / name).symlink_to(ROOT / name)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    for line in LINES:
        started = time.monotonic()
        subprocess.run([sys.executable, *line.split()[1:]], cwd=folder, env=environment, check=True)
        print(f"{line}: {time.monotonic() - started:.0f} s", flush=True)


@pytest.mark.slow
def test_the_three_lines_run_as_written(tmp_path):
    small = "phantom data --size 64x64 --train 2 --val 2 --test 2 --gap 1".split()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "natural2nanoscale", *small], cwd=tmp_path, env=environment, check=True)
    run_lines(tmp_path)
    rows = (tmp_path / "data" / "synthetic" / "manifest.jsonl").read_text().splitlines()
    assert len(rows) == 2
    report = json.loads((tmp_path / "runs" / "unet" / "report.json").read_text())
    assert report["miou_mean"] > 1 / 3  # better than calling everything one class
    assert any((tmp_path / "runs" / "controlnet" / "samples").glob("*.png"))


if __name__ == "__main__":
    run_lines(Path(sys.argv[1]))
