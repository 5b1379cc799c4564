"""A study's report as one page that needs nothing else, and the same tables as Markdown and CSV."""

from __future__ import annotations

import base64
import csv
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from natural2nanoscale.charts import COLOURS
from natural2nanoscale.files import write_text
from natural2nanoscale.records import read_config


@dataclass(frozen=True)
class Table:
    """Rows of cells that are written as they are; the first column holds names, the others numbers."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart in SVG."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Pictures:
    """PNG files with a caption each, one beside the other where there is room."""

    title: str
    files: Sequence[tuple[str, Path]]
    note: str = ""


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
                csv.writer(file).writerows(csv_rows(part))
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


# ------------------------------------------------------------------------------------------- Markdown, CSV


def markdown(report: Report, out: Path) -> str:
    """Tables as GitHub writes them; pictures as links relative to `out`. Charts are in the page only."""
    lines = [f"# {report.title}", "", f"**{report.verdict}**"]
    for part in report.parts:
        if isinstance(part, Figure):
            continue
        lines += ["", f"## {part.title}", ""]
        if isinstance(part, Table):
            lines += [f"| {' | '.join(part.header)} |", "|---|" + "--:|" * (len(part.header) - 1)]
            lines += [f"| {' | '.join(row)} |" for row in part.rows]
        else:
            lines += [f"![{caption}]({os.path.relpath(file, out)})" for caption, file in part.files]
        lines += ["", part.note] if part.note else []
    lines += ["", "## How it was made", "", *(f"- {name}: {value}" for name, value in report.facts)]
    return "\n".join(lines) + "\n"


def csv_rows(table: Table) -> list[tuple[str, ...]]:
    """The table with one number per column: "77.7 ± 4.8" and "-6.8 to +1.3" become two, "30 % (12 to 45 %)" three."""
    columns = [(table.header[0], *(row[0] for row in table.rows))]
    for i, name in enumerate(table.header[1:], 1):
        cells = [re.split(r" ± | % \(| to (?=[-+]?\d)", re.sub(r" %\)?$", "", row[i])) for row in table.rows]
        width = max(map(len, cells))
        ends = (" low", " high") if any(" to " in row[i] for row in table.rows) else ("", " ±")
        endings = ends if width == 2 else ("", *ends)[:width]
        columns += zip(*([name + end for end in endings], *([*cell, "", ""][:width] for cell in cells)), strict=True)
    return list(zip(*columns, strict=True))


# ---------------------------------------------------------------------------------------------------- page

STYLE = """
:root { --paper: #fff; --ink: #1b1f24; --soft: #59636e; --rule: #d5dae0; --band: #f3f6f9;
  --s0: #0b62b0; --s1: #c4501b; --s2: #2c7d4f; --s3: #7a3e9d; --s4: #8a6d00; --s5: #b3246b; --s6: #00808a;
  --s7: #6b4a2b; --s8: #59636e; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --ink: #e8ecf0; --soft: #9aa6b2; --rule: #38414b; --band: #1d232a;
    --s0: #6cb2f2; --s1: #f0945f; --s2: #6fc795; --s3: #c795e6; --s4: #d9bb4a; --s5: #ef7fb5; --s6: #5cc8d1;
    --s7: #c69f7c; --s8: #9aa6b2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.25rem 1rem 3rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--soft); margin: 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
.verdict { font-size: 1.35rem; line-height: 1.35; font-weight: 600; margin: .5rem 0 0; padding-left: .8rem;
  border-left: 4px solid var(--s0); }
.note { color: var(--soft); font-size: .9rem; margin: .5rem 0; }
.scroll { overflow-x: auto; } .off { display: inline-block; min-width: 3.2em; text-align: left; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: var(--paper); white-space: normal; min-width: 14rem; overflow-wrap: normal; }
tbody tr:hover td { background: var(--band); }
svg { display: block; width: 100%; max-width: 34rem; height: auto; }
svg text { font-size: 12px; fill: var(--ink); } svg .small { font-size: 11px; fill: var(--soft); }
svg .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.grid { stroke: var(--rule); stroke-width: .6; } .rule { stroke: var(--soft); stroke-width: .6; }
.zero { stroke: var(--ink); stroke-width: 1.2; }
.level { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
.mean { fill: var(--s0); }
.bar0 { stroke: var(--s0); stroke-width: 3; } .bar1 { stroke: var(--s1); stroke-width: 2; }
.curve { fill: none; stroke-width: 2; } .curve.again { stroke-dasharray: 6 3; } .spread { stroke-width: 1.2; }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; flex: 0 1 auto; max-width: 100%; }
figcaption { color: var(--soft); font-size: .9rem; } img { display: block; max-width: 100%; height: auto; }
dl { font-size: .9rem; margin: 0; } dt { color: var(--soft); margin-top: .6rem; } dd { margin: 0; }
@media (max-width: 40rem) { .verdict { font-size: 1.15rem; } th, td { padding: .3rem .45rem; }
  table { font-size: .85rem; }
  td:first-child, th:first-child { min-width: 7rem; } }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --rule: #bbb; --band: #fff; }
  body { max-width: none; padding: 0; } .scroll { overflow: visible; }
  h2 { break-after: avoid; } tr, svg, figure { break-inside: avoid; } }
"""
STYLE += "".join(f".s{n} {{ stroke: var(--s{n}); }} .point.s{n} {{ fill: var(--s{n}); }}\n" for n in range(COLOURS))
# The page may load nothing but the pictures that it holds.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(report: Report) -> str:
    """The whole report as one HTML document without scripts; it loads nothing, and is light or dark as its reader's."""
    body = [f"<h1>{escape(report.title)}</h1>", f'<p class="verdict">{escape(report.verdict)}</p>']
    for part in report.parts:
        body.append(f"<section><h2>{escape(part.title)}</h2>")
        if isinstance(part, Table):
            body.append(html_table(part))
        elif isinstance(part, Figure):
            body.append(part.svg)
        else:
            body.append(f'<div class="pictures">{"".join(html_picture(*file) for file in part.files)}</div>')
        body.append(f'<p class="note">{escape(part.note)}</p></section>' if part.note else "</section>")
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.facts)
    body.append(f"<section><h2>How it was made</h2><dl>{facts}</dl></section>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def html_table(table: Table) -> str:
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    # ± below ±
    cells = [[re.sub(r" (± .*)", r' <span class="off">\1</span>', escape(cell)) for cell in row] for row in table.rows]
    rows = "".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in cells)
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'


def html_picture(caption: str, file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode()
    alt = escape(caption, quote=True)
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"><figcaption>{alt}</figcaption></figure>'
