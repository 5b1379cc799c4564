"""Names that others chose, shown: class names, file names and datasets' names reach terminals and reports."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from unicodedata import category


def printable(text: str) -> str:
    """Without what steers a terminal or reorders its letters."""
    return "".join(c if c.isprintable() or category(c) == "Zs" else "?" for c in text)  # Zs: spaces


def markdown_text(text: str) -> str:
    """As Markdown that shows exactly this: no tags, links, columns or emphasis."""
    return re.sub(r"([\\`*_~$\[\]|])", r"\\\1", escape(printable(text), quote=False))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table of `markdown_text`; the first column holds names, the others numbers."""
    first, *lines = (f"| {' | '.join(map(markdown_text, row))} |" for row in (header, *rows))
    return [first, "|---|" + "--:|" * (len(header) - 1), *lines]
