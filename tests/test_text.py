"""Names that others chose neither steer a terminal nor become tags, links or columns of a report."""

import json
import re
import sys

import pytest

from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import DatasetInfo, open_pairs, write_pairs
from natural2nanoscale.errors import InputError
from natural2nanoscale.guard import main_guard
from natural2nanoscale.text import markdown_text, printable

HOSTILE = "<script>alert(1)</script> [a](http://b) | *x*"


def test_markdown_shows_exactly_the_name():
    assert markdown_text("cell_1") == r"cell\_1" and printable("a\x1b[2Jb\u202e") == "a?[2Jb?"
    assert markdown_text(HOSTILE) == r"&lt;script&gt;alert(1)&lt;/script&gt; \[a\](http://b) \| \*x\*"


def test_class_names_that_cannot_be_shown_are_refused(verb, tmp_path):
    for name in ("a\x1b[2J", "a\nb", " ", "a\u202eb"):
        with pytest.raises(InputError, match="cannot be shown"):
            Classes.named("background", name)
    (tmp_path / "a.png").touch()
    error = verb("prepare", "--images", tmp_path, "--masks", tmp_path, "--classes", "a,b\x1b[2J", "--out",
                 tmp_path / "out", expect=2).stderr  # fmt: skip
    assert "\x1b" not in error


def test_hostile_names_are_escaped_in_reports_and_cards(data_folder, script, tmp_path):
    classes = Classes.named("background", HOSTILE, "nucleus")
    for part in ("train", "val", "test"):
        folder = open_pairs(data_folder / part)
        triples = [(stem, folder.image(stem), folder.mask(stem)) for stem in folder.stems]
        write_pairs(tmp_path / "hostile" / part, DatasetInfo("<b>x</b>", "prepared", classes), triples)
    small = ["--width", 4, "--depth", 2, "--max-steps", 1, "--seeds", 1, "--batch-size", 2]
    script("train_unet.py", "--data", tmp_path / "hostile", "--out", tmp_path / "run", *small)
    for name in ("report.md", "README.md"):
        text = (tmp_path / "run" / name).read_text()
        assert markdown_text(HOSTILE) in text and not re.search(r"<script|<b>|(?<!\\)\[a\]", text), name
    assert json.loads((tmp_path / "run" / "report.json").read_text())["per_class"][1]["name"] == HOSTILE


def test_errors_cannot_steer_the_terminal(capsys, monkeypatch):
    def fail(_: object) -> None:
        raise InputError("no slice \x1b]0;x\x07")

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit):
        main_guard(lambda: None, fail)
    assert "\x1b" not in capsys.readouterr().err
