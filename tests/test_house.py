"""What holds the house together: import directions, quick help, exit codes."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natural2nanoscale.charts import plot_progress
from natural2nanoscale.cli import Parser, flags_of
from natural2nanoscale.diffusion import settings as diffusion_settings

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "natural2nanoscale"
SCRIPTS = [ROOT / f"{name}.py" for name in ("train_controlnet", "generate", "train_unet")]
FILES = [*sorted(PACKAGE.rglob("*.py")), *SCRIPTS]
MAY_IMPORT = {  # wing -> wings it may import; what lies beside the wings belongs to all and imports none
    "data": {"data"},
    "phantom": {"data", "phantom"},
    "diffusion": {"data", "diffusion"},
    "segmentation": {"data", "segmentation"},
    "study": {"data", "phantom", "diffusion", "segmentation", "study"},
    "workshop": {"data", "phantom", "diffusion", "workshop"},
}
LONGEST_FILE, LONGEST_FUNCTION = 250, 80  # lines; tables of arguments may be longer


def module_of(file: Path) -> str:
    """natural2nanoscale/data/classes.py -> natural2nanoscale.data.classes."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


def imports_of(file: Path) -> set[str]:
    """Modules of the project that a file imports: at its top, inside its functions, or for types alone."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= parts if parts <= set(MODULES) else parts | {node.module}
    return names & set(MODULES)


def test_import_direction():
    for file in FILES:
        wing = file.relative_to(PACKAGE).parts[0] if PACKAGE in file.parents else None
        wings = {name.split(".")[1] for name in imports_of(file)} & set(MAY_IMPORT)
        if wing in MAY_IMPORT:
            assert wings <= MAY_IMPORT[wing], file
        elif wing is not None and not (PACKAGE / wing).is_dir() and wing != "__main__.py":
            assert not wings, file


def test_no_circle_of_imports():
    graph = {name: imports_of(file) - {name} for name, file in MODULES.items()}
    while free := {name for name, needs in graph.items() if not needs & set(graph)}:
        graph = {name: needs for name, needs in graph.items() if name not in free}
    assert not graph, f"import one another, or what does: {sorted(graph)}"


def test_files_and_functions_are_short():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= LONGEST_FILE, f"{file} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "argument" not in node.name:
                lines = node.end_lineno - node.lineno + 1
                assert lines <= LONGEST_FUNCTION, f"{file}: {node.name} has {lines} lines"


def test_below_the_front_doors_nobody_sees_arguments():
    """argparse.Namespace ends in the scripts, in a verb's `run`, in cli.py and guard.py."""
    doors = ("cli.py", "guard.py", "__main__.py")
    for file in (file for file in FILES if PACKAGE in file.parents and file.name not in doors):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name != "run":
                kinds = [ast.unparse(arg.annotation) for arg in node.args.args if arg.annotation]
                assert "argparse.Namespace" not in kinds, f"{file}: {node.name}"


@pytest.mark.parametrize(
    "command",
    [
        ["train_controlnet.py"],
        ["generate.py"],
        ["train_unet.py"],
        *(
            ["-m", "natural2nanoscale", *verb]
            for verb in (
                [],
                ["demo"],
                ["experiments"],
                ["prepare"],
                ["check"],
                ["export"],
                ["phantom"],
                ["evaluate"],
                ["segment"],
                ["convert"],
                ["calibrate"],
            )
        ),
    ],
    ids=lambda command: command[-1],
)
def test_help_does_not_wait_for_torch(command):
    code = (
        "import sys, runpy; sys.argv = {argv!r}\n"
        "try: runpy.{run}\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    if command[0] == "-m":
        code = code.format(
            argv=["n2n", *command[2:], "--help"], run="run_module('natural2nanoscale', run_name='__main__')"
        )
    else:
        code = code.format(argv=[command[0], "--help"], run=f"run_path({command[0]!r}, run_name='__main__')")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.startswith("usage:") and result.stderr.strip() == "False"


def test_no_parser_takes_abbreviations(script, verb, tmp_path, monkeypatch):
    """--epoch in place of --epochs would be taken, and with --resume then be ignored."""
    built = []

    def parse(parser: Parser, *_: object) -> None:
        built.append(parser)
        raise SystemExit(7)

    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse_args", parse)
        for file in ROOT.glob("*.py"):
            if file.name != "setup.py":
                script(file.name, expect=7)
        verb(expect=7)
        (choices,) = [action.choices for action in built[-1]._actions if action.choices]
        for name in choices:
            verb(name, expect=7)
            built.extend([action.choices for action in built[-1]._actions if action.choices][0].values())
    assert len(built) > 90 and all(type(parser) is Parser and not parser.allow_abbrev for parser in built)
    makers = [file for file in [*ROOT.glob("*.py"), *PACKAGE.rglob("*.py")] if "ArgumentParser(" in file.read_text()]
    assert not makers
    error = script("train_controlnet.py", "--out", tmp_path, "--resume", "--epoch", 3, expect=2).stderr
    assert "unrecognized arguments: --epoch 3" in error


def test_wrong_path_is_one_sentence_and_exit_code_2(script, tmp_path):
    for name in ("train_controlnet.py", "train_unet.py"):
        out = tmp_path / name
        error = script(name, "--data", tmp_path / "nowhere", "--out", out, expect=2).stderr
        assert error.startswith("error: ") and "nowhere" in error and error.count("\n") == 1
        assert not out.exists()


def test_out_of_memory_names_only_what_the_command_has(monkeypatch, script, verb, tmp_path):
    import torch

    from natural2nanoscale.study import synthetic  # which keeps what it imports

    def exhausted(name: str) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("natural2nanoscale.device.select_device", exhausted)
    monkeypatch.setattr(synthetic, "select_device", exhausted)
    for command, has in (
        (("demo",), {"--unet-batch", "--crop", "--unet-crop", "--device"}),
        (("experiments",), {"--unet-batch", "--crop", "--unet-crop", "--device"}),
        (("evaluate", tmp_path, "--data", tmp_path), {"--device"}),
    ):
        monkeypatch.setattr("natural2nanoscale.data.folders.open_pairs", lambda path: None)
        error = verb(*command, expect=2).stderr
        named = set(re.findall(r"--[a-z-]+", error)) - {"--size"}  # that one is of `prepare`
        assert error.startswith("error: out of memory (no room): take ") and named == has


def test_one_process_scripts_refuse_torchrun(script, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("generate.py", "train_unet.py"):
        assert f"error: {name} runs in one process, found 2" in script(name, "--out", tmp_path / "out", expect=2).stderr
    assert not (tmp_path / "out").exists()


def test_progress_picture_shows_the_curves(tmp_path):
    rows = [{"step": i, "loss": 1 / (i + 1)} for i in range(50)] + [{"step": 50}]
    plot_progress(tmp_path / "progress.png", rows, [["loss", "absent"], ["nothing"]])
    with Image.open(tmp_path / "progress.png") as picture:
        assert picture.size == (640, 240)  # one panel: the other has no curve
        blue = (np.asarray(picture) == (31, 95, 168)).all(axis=2).sum()
    assert blue > 300
    plot_progress(tmp_path / "none.png", [], [["loss"]])
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    "name, settings, the_backbones",
    [
        ("train_controlnet", "FineTuning", {"crop", "lr", "max_weight"}),
        ("generate", "SamplingSettings", {"strength", "start"}),
    ],
)
def test_flags_have_the_defaults_of_the_settings(name, settings, the_backbones, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    args = runpy.run_path(str(ROOT / f"{name}.py"))["parse_arguments"]()
    kind = getattr(diffusion_settings, settings)
    for field, (flag, _) in flags_of(kind).items():
        dest = flag.removeprefix("--").replace("-", "_")
        if dest in the_backbones:
            assert getattr(args, dest) is None
        else:
            assert getattr(args, dest) == kind.__dataclass_fields__[field].default, flag
