"""Every command line in every README is one that the project takes."""

import re
import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = ROOT / "natural2nanoscale/data/TUTORIAL.md"
READMES = [ROOT / "README.md", *sorted((ROOT / "natural2nanoscale").rglob("README.md")), TUTORIAL]
MOST_WORDS = 1000  # of the README at the root: it is read in two minutes


def commands_of(readme: Path) -> list[str]:
    """Commands that start python or torchrun with something of ours: in fenced blocks, and in backquotes."""
    text = readme.read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    parts = [part.strip() for line in [*lines, *inline] for part in line.split("&&")]
    return [part for part in parts if re.match(r"(python|torchrun) ", part)]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_parse(readme, monkeypatch):
    for command in commands_of(readme):
        words = shlex.split(command)
        if words[0] == "torchrun":
            words = ["python", *words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]]
        if words[1] == "-m":
            assert words[2] == "natural2nanoscale", command
            from natural2nanoscale.__main__ import parse_arguments as parse

            monkeypatch.setattr(sys, "argv", ["natural2nanoscale", *words[3:]])
        elif words[1].startswith("tests/"):
            assert (ROOT / words[1]).is_file(), command
            continue
        else:
            import runpy

            parse = runpy.run_path(str(ROOT / words[1]))["parse_arguments"]
            monkeypatch.setattr(sys, "argv", words[1:])
        try:
            parse()
        except SystemExit as stop:
            pytest.fail(f"{readme}: `{command}` ends with exit code {stop.code}")


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme):
    for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (readme.parent / target).exists(), target


def test_the_first_readme_is_short():
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    assert len(words) <= MOST_WORDS
