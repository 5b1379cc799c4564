"""Names that others chose, shown: class names, file names and datasets' names reach terminals and reports."""

from __future__ import annotations

import re
from html import escape


def printable(text: str) -> str:
    """Without what steers a terminal or reorders its letters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def markdown_text(text: str) -> str:
    """As Markdown that shows exactly this: no tags, links, columns or emphasis."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", escape(printable(text), quote=False))
