"""What slices are called when a ControlNet learns and draws: a text file, one prompt per line."""

from __future__ import annotations

from pathlib import Path

from natural2nanoscale.errors import InputError
from natural2nanoscale.records import LARGEST, open_regular

PROMPTS = Path(__file__).with_name("prompts.txt")


def read_prompts(file: Path | None = None) -> list[str]:
    """One prompt per line; empty lines do not count. Default: the 37 prompts of the package."""
    file = file or PROMPTS
    try:
        with open_regular(file) as opened:
            text = opened.read(LARGEST).decode("utf-8")
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompts {file} cannot be read ({error}): expected a text file") from error
    if not prompts:
        raise InputError(f"--prompts {file} holds no prompt, expected one per line")
    return prompts
