"""A study's report as one page that needs nothing else, and the same tables as Markdown and CSV."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from natural2nanoscale.files import write_text
from natural2nanoscale.records import read_config
from natural2nanoscale.text import markdown_table, markdown_text

# The page may load nothing but the pictures that it holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Table:
    """Rows of cells that are written as they are; the first column holds names, the others numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def html(self) -> str:
        header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in self.header)
        cells = [
            [re.sub(" (± .*)", r' <span class="off">\1</span>', escape(cell)) for cell in row] for row in self.rows
        ]
        rows = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in cells)  # the spans put ± below ±
        return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'

    def markdown(self, out: Path) -> list[str]:
        """As GitHub writes tables."""
        return markdown_table(self.header, self.rows)

    def columns(self) -> Iterator[tuple[str, ...]]:
        """Columns of one number each, under their names: "77.7 ± 4.8" and "-6.8 to +1.3" become two of them."""
        yield self.header[0], *(row[0] for row in self.rows)
        for i, name in enumerate(self.header[1:], 1):
            cells = [re.split(r" ± | % \(| to (?=[-+]?\d)", re.sub(r" %\)?$", "", row[i])) for row in self.rows]
            width = max(map(len, cells))
            ends = (" low", " high") if any(" to " in row[i] for row in self.rows) else ("", " ±")
            ends = ends if width == 2 else ("", *ends)[:width]
            yield from zip(*([name + end for end in ends], *([*cell, "", ""][:width] for cell in cells)), strict=True)


@dataclass(frozen=True)
class Figure:
    """A chart in SVG, which is in the page alone."""

    title: str
    svg: str
    note: str = ""

    def html(self) -> str:
        return self.svg

    def markdown(self, out: Path) -> list[str]:
        return []


@dataclass(frozen=True)
class Pictures:
    """PNG files with a caption each, one beside the other where there is room."""

    title: str
    files: Sequence[tuple[str, Path]]
    note: str = ""

    def html(self) -> str:
        found = []
        for caption, file in self.files:
            alt, data = escape(caption, quote=True), base64.b64encode(file.read_bytes()).decode()
            image = f'<img alt="{alt}" src="data:image/png;base64,{data}">'
            found.append(f"<figure>{image}<figcaption>{alt}</figcaption></figure>")
        return f'<div class="pictures">{"".join(found)}</div>'

    def markdown(self, out: Path) -> list[str]:
        """As links relative to `out`."""
        return [f"![{markdown_text(caption)}]({os.path.relpath(file, out)})" for caption, file in self.files]


@dataclass(frozen=True)
class Report:
    """What a study found: the verdict is one sentence; facts are (name, value) pairs, the command among them."""

    title: str
    verdict: str
    parts: Sequence[Table | Figure | Pictures]
    facts: Sequence[tuple[str, str]]


def write_report(out: Path, report: Report) -> str:
    """Write report.html, report.md and tables/*.csv into `out`; returns the Markdown."""
    text = markdown(report, out)
    (out / "tables").mkdir(exist_ok=True)
    for part in report.parts:
        if isinstance(part, Table):
            with (out / "tables" / f"{slug(part.title)}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(zip(*part.columns(), strict=True))
    for name, content in (("report.md", text), ("report.html", page(report))):
        write_text(out / name, content)
    return text


def slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def run_facts(run: Path) -> list[tuple[str, str]]:
    """What a reader needs to make a run again: this command, the versions and the settings in config.json."""
    config = read_config(run)
    environments = config["environments"]  # several where the run was stopped and went on in another one
    versions = [
        ", ".join(f"{name} {version}" for name, version in one["versions"].items() if version) for one in environments
    ]
    commits = [one["git_commit"] or "not a git checkout" for one in environments]
    return [
        ("Command", shlex.join(["python", "-m", "natural2nanoscale", *sys.argv[1:]])),
        ("Versions", "; then ".join(dict.fromkeys(versions))),
        ("Commit", "; then ".join(dict.fromkeys(commits))),
        ("Backbone's weights", config["backbone"]),
        (
            "Data",
            ", ".join(f"{part} {hash_[:12]}" for part, hash_ in config["data"].items()) or "phantoms made by the run",
        ),
        ("Settings", json.dumps(config["settings"])),
    ]


def markdown(report: Report, out: Path) -> str:
    """Tables as GitHub writes them; pictures as links relative to `out`. Charts are in the page only."""
    shown = markdown_text  # names of classes are whatever people call them
    lines = [f"# {shown(report.title)}", "", f"**{shown(report.verdict)}**"]
    for part in report.parts:
        if words := part.markdown(out):
            lines += ["", f"## {shown(part.title)}", "", *words, *(["", shown(part.note)] if part.note else [])]
    lines += ["", "## How it was made", "", *(f"- {name}: {shown(value)}" for name, value in report.facts)]
    return "\n".join(lines) + "\n"


def page(report: Report) -> str:
    """The whole report as one HTML document without scripts; it loads nothing, and is light or dark as its reader's."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    sections = "\n".join(
        f'<section><h2>{escape(part.title)}</h2>\n{part.html()}\n<p class="note">{escape(part.note)}</p></section>'
        for part in report.parts
    )
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.facts)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<title>{escape(report.title)}</title>
<style>{style}</style></head>
<body>
<h1>{escape(report.title)}</h1>
<p class="verdict">{escape(report.verdict)}</p>
{sections}
<section><h2>How it was made</h2><dl>{facts}</dl></section>
</body></html>
"""
