"""The one reader of JSON from disk: schemas, limits, links, and what is no regular file."""

import hashlib
import json
import os
import re
from types import SimpleNamespace

import pytest
import torch

from natural2nanoscale import records, schemas
from natural2nanoscale.checkpoints import State
from natural2nanoscale.data.classes import Classes
from natural2nanoscale.data.folders import open_pairs, read_info
from natural2nanoscale.errors import InputError
from natural2nanoscale.records import inside, parse, read_config, read_json, read_lines
from natural2nanoscale.runs import open_run
from natural2nanoscale.segmentation.unet import UNet, UNetInfo, save_unet


@pytest.mark.parametrize(
    "text, schema, said",
    [
        ("[" * 2000 + "]" * 2000, list, "nested too deeply"),
        ("[" * 40 + "]" * 40, list, "nested too deeply"),
        (b'{"a": "\xff"}', dict, "utf-8"),
        ("1" * 4300, int, "too large"),
        ("1e999", float, "too large"),
        ("NaN", float, "no number"),
        ('"\\ud800"', str, "surrogates"),
        ('{"a": 1}', {"b": int}, "has no 'b'"),
        ('{"a": {"b": true}}', {"a": {"b": int}}, "a.b is true, expected a whole number"),
        ('{"a": [1, "x"]}', {"a": [schemas.NATURAL]}, re.escape("a[1]")),
        ('{"a": -1}', {...: schemas.NATURAL}, "from 0 to"),
        ('"../x.png"', schemas.PNG, "the name of a PNG"),
        ('".x.png"', schemas.PNG, "the name of a PNG"),
        ('"a\\u001b[31m"', schemas.LINE, "a line of text"),
        ('{"a": 1}', ({}, {"b": int}), "has no 'b'"),
        ("{", dict, "Expecting"),
    ],
)
def test_what_does_not_fit_is_named(text, schema, said):
    with pytest.raises(ValueError, match=said):
        parse(text, schema)


def test_what_fits_is_taken():
    data = {"a": 1, "c": [1.5, 2], "more": {"x": None}}
    assert parse(json.dumps(data), {"a": float, "b?": str, "c": [float]}) == data
    assert parse("{}", ({}, {"b": int})) == {} and parse("null", (None, str)) is None


def test_only_regular_files_of_the_folder_are_read(tmp_path):
    folder, outside = tmp_path / "run", tmp_path / "config.json"
    folder.mkdir()
    outside.write_text("{}")
    assert read_config(folder) == {}
    (folder / "config.json").symlink_to(outside)
    with pytest.raises(InputError, match="leads out of its folder"):
        read_config(folder)
    os.remove(folder / "config.json")
    os.mkfifo(folder / "config.json")
    with pytest.raises(InputError, match="no regular file"):
        read_config(folder)
    for name in ("../config.json", "/etc/passwd", "a\0b"):
        with pytest.raises(ValueError):
            inside(folder, name)
    assert inside(folder, "a/b") == folder / "a/b"


def test_too_large_a_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "LARGEST", 10)
    (tmp_path / "a.json").write_text(" " * 11)
    with pytest.raises(ValueError, match="more than 10 bytes"):
        read_json(tmp_path / "a.json", dict)


def test_damaged_lines_are_left_out_and_told_of_or_refused(tmp_path, capsys):
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"step": 1}\n{"step": "2"}\n"row"\n\xff\n{"step": 3}\n{"step": 4')
    assert read_lines(file) == [{"step": 1}, {"step": 3}]
    assert "3 damaged line(s) are left out (line 2: step is" in capsys.readouterr().out
    with pytest.raises(InputError, match="line 2.*: remove it"):
        read_lines(file, remedy="remove it")


@pytest.mark.parametrize("number", [schemas.FORMAT + 1, 10**6])
def test_a_later_format_is_refused_in_one_sentence(tmp_path, data_folder, number):
    later = f"is of format {number}, this version of natural2nanoscale reads up to {schemas.FORMAT}: update it"

    def refused(file, read) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"format": number}))
        with pytest.raises(InputError) as error:
            read()
        assert str(error.value) == f"{file} {later}"

    refused(data_folder / "train" / "dataset.json", lambda: read_info(data_folder / "train"))
    run = open_run(tmp_path / "run", {"kind": "unet"}, resume=False)
    for name in ("manifest.json", "state.json"):  # no damage: nothing before it is taken instead
        for step in (1, 2):
            checkpoint = run.save(State(SimpleNamespace(step=step), a=torch.ones(1)))
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        state = checkpoint / "state.json"
        if name == "state.json":
            changed = json.dumps(json.loads(state.read_text()) | {"format": number})
            manifest["state.json"] = hashlib.sha256(changed.encode()).hexdigest()
            (checkpoint / "manifest.json").write_text(json.dumps(manifest))
        refused(checkpoint / name, run.load_checkpoint)
    refused(run.path / "config.json", lambda: read_config(run.path))


def test_every_file_of_json_says_its_format(data_folder, tmp_path):
    """And none that was read has it among what it says."""
    run = open_run(tmp_path / "run", {"kind": "unet"}, resume=False)
    run.save(State(SimpleNamespace(step=1), a=torch.ones(1)))
    save_unet(tmp_path / "best", UNet(2, 4, 2), UNetInfo(4, 2, Classes.named("a", "b")))
    files = [*tmp_path.rglob("*.json"), *data_folder.rglob("*.json")]
    assert {file.name for file in files} == {"config.json", "state.json", "manifest.json", "dataset.json"}
    assert all(json.loads(file.read_text())["format"] == schemas.FORMAT for file in files)
    assert "format" not in read_config(run.path) and run.load_checkpoint().state == {}


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("pixel_size_nm", 1e308, "pixel_size_nm"),
        ("intensity_window", [200, 10], "a higher one"),
        ("intensity_window", [1], "a higher one"),
        ("origin", 3, "origin"),
        ("classes", [{"id": 0, "name": "a\x1b[2J", "color": [1, 2, 3]}], r"classes\[0\].name"),
        ("classes", [{"id": 0, "name": "a", "color": [1, 2, 300]}], "color"),
        ("split", "x", "split"),
        ("digests", {"a": 5}, "digests.a"),
    ],
)
def test_descriptions_of_folders_are_checked(data_folder, key, value, said):
    file = data_folder / "train" / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(InputError, match=said):
        read_info(data_folder / "train")


def test_pictures_that_are_none_do_not_hang_and_large_ones_are_not_decoded(data_folder, verb, monkeypatch):
    from natural2nanoscale.data.readers import gray

    monkeypatch.setattr(gray, "MAX_PIXELS", 100)
    with pytest.raises(InputError, match="2048 pixels, expected at most 100"):
        open_pairs(data_folder / "train")
    monkeypatch.undo()
    file = data_folder / "train" / "images" / "slice_0001.png"
    for make in (lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero")):
        file.unlink()
        make()
        error = verb("check", data_folder, expect=2).stderr
        assert "slice_0001.png" in error and "no regular file" in error and error.count("\n") == 1
