"""The tutorial's commands, at small size, and the pictures that its text shows."""

import re

import pytest
from tutorial import STEPS, write_tutorial


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(tmp_path):
    text = write_tutorial(tmp_path / "work", 48, (64, 64), {"controlnet": 1, "unet": 4, "look": 4}).read_text()
    assert text.count("```bash") == len(STEPS) and "36 of 48 masks" in text
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (tmp_path / "work" / picture).is_file()
    assert len(list((tmp_path / "work" / "masks" / "masks").iterdir())) == 48
