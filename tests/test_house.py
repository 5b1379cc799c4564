"""What holds the house together: import directions, quick help, exit codes."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from natural2nanoscale.cli import Parser
from natural2nanoscale.plots import plot_progress

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "natural2nanoscale"
MAY_IMPORT = {  # wing -> wings it may import; runs, cli and errors belong to nobody
    "data": {"data"},
    "diffusion": {"data", "diffusion"},
    "segmentation": {"data", "segmentation"},
    "study": {"data", "diffusion", "segmentation", "study"},
}


def imported_wings(file: Path) -> set[str]:
    """Wings of the package that a file imports, at its top or inside its functions."""
    wings = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        parts = [name.split(".") for name in names if name.startswith("natural2nanoscale.")]
        wings |= {part[1] for part in parts}
    return wings & set(MAY_IMPORT)


@pytest.mark.parametrize("wing", MAY_IMPORT)
def test_import_direction(wing):
    files = list((PACKAGE / wing).glob("*.py"))
    assert files
    for file in files:
        assert imported_wings(file) <= MAY_IMPORT[wing], file.name


def test_what_all_wings_share_imports_none():
    shared = [file for file in PACKAGE.glob("*.py") if file.name != "__main__.py"]
    assert len(shared) > 8 and not [file.name for file in shared if imported_wings(file)]


def test_no_import_circle():
    """Among all imports: at the top, inside functions, and for types only."""
    modules = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    imports = {}
    for name, file in modules.items():
        imports[name] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imports[name] |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                imports[name] |= {alias.name for alias in node.names}
        imports[name] &= modules.keys() - {"natural2nanoscale"}  # which is empty
    try:
        tuple(TopologicalSorter(imports).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


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
                ["phantom"],
                ["evaluate"],
                ["segment"],
                ["convert"],
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
