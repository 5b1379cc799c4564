"""What is read from disk as JSON: the one reader. Whoever wrote a file is not trusted."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from natural2nanoscale.errors import InputError
from natural2nanoscale.schemas import CONFIG, FORMAT, HASH, LINE, LOG_ROW, PNG, Between
from natural2nanoscale.text import printable

LARGEST, LONGEST_LINE = 64_000_000, 16_000_000  # bytes of a file, and of one line: a study's of 500 test slices
DEEPEST = 24


def read_json(path: Path, schema: Any, links: bool = False) -> Any:
    """The content of a JSON file, without its format number.

    ValueError where it does not fit, OSError where it cannot be read, InputError where a later version wrote it.
    A link that leads out of the file's folder is not followed, unless `links`, as the hub's cache has them.
    """
    with open_regular(path, links) as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes")
    return parse(text, schema, path)


def describe(path: Path, schema: Any, remedy: str) -> Any:
    """As `read_json`, with an InputError that says what is wrong with the file and the remedy."""
    try:
        return read_json(path, schema)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as what it should be ({reason(error)}): {remedy}") from error


def read_config(folder: Path, schema: Any = CONFIG) -> dict:
    """config.json of a run folder; {} where there is none, InputError where it is not what a run writes."""
    file = Path(folder) / "config.json"
    return describe(file, schema, "name another folder, or restore the file") if os.path.lexists(file) else {}


def read_lines(path: Path, schema: Any = LOG_ROW, remedy: str | None = None) -> list[dict]:
    """The JSON lines of a file, none where it does not exist; a last line that a kill cut short is left out.

    Other lines that do not fit are left out as well and told of; with a `remedy` they are an InputError that names it.
    """
    rows, bad = [], []
    if not os.path.lexists(path):
        return rows
    try:
        with open_regular(path) as file:
            for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), b""), 1):
                try:
                    rows.append(parse(line, schema, path))
                except ValueError as error:
                    if line.endswith(b"\n"):
                        bad.append(f"line {number}: {reason(error)}")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}): restore or remove it") from error
    if bad and remedy:
        raise InputError(f"{path} is damaged ({bad[0]}): {remedy}")
    if bad:
        print(f"{path}: {len(bad)} damaged line(s) are left out ({bad[0]})")
    return rows


def open_regular(path: Path, links: bool = True) -> BinaryIO:
    """Open a regular file for reading; OSError for anything else, on which opening or reading could wait for ever."""
    if not links and path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise OSError("it is a link that leads out of its folder")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no regular file")
    return os.fdopen(descriptor, "rb")


def inside(folder: Path, name: str) -> Path:
    """The file of this name within a folder; ValueError for a path, or a link, that leads out of it."""
    path = folder / name
    if "\0" in name or Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of its folder")
    return path


def parse(text: bytes | str, schema: Any, source: object = "it") -> Any:
    """JSON that fits the schema, without its format number; ValueError, which names the place, for anything else.

    InputError where the format is a later one; `source` is whose text it is.
    """
    try:
        data = json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
        _refuse_extremes(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if isinstance(data, dict) and isinstance(data.get("format"), int):  # other libraries' files may say what they like
        found = data.pop("format")
        if found > FORMAT:
            raise InputError(
                f"{source} is of format {found}, this version of natural2nanoscale reads up to {FORMAT}: update it"
            )
    wrong = mismatch(data, schema)
    if wrong:
        raise ValueError(wrong)
    return data


def _refuse_extremes(value: Any, level: int = 0) -> None:
    """Raise ValueError for what JSON may hold and none of our files does."""
    if level > DEEPEST:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair is no text
    elif isinstance(value, (int, float)):
        if not abs(value) <= (2**64 if isinstance(value, int) else sys.float_info.max):  # NaN is not either
            raise ValueError("a number is too large, or no number")
    elif isinstance(value, (dict, list)):
        for one in [*value, *value.values()] if isinstance(value, dict) else value:
            _refuse_extremes(one, level + 1)


def mismatch(value: Any, schema: Any, place: str = "") -> str | None:
    """What does not fit, in words; None where all does."""
    if isinstance(schema, tuple):
        told = [mismatch(value, one, place) for one in schema]
        return None if None in told else told[-1]
    parts = []  # (value, schema, place) of what it holds
    if isinstance(schema, list) and isinstance(value, list):
        parts = [(one, schema[0], f"{place}[{i}]") for i, one in enumerate(value)]
    elif isinstance(schema, dict) and isinstance(value, dict) and (schema or not value):
        lacking = [key for key in schema if key is not ... and not key.endswith("?") and key not in value]
        if lacking:
            return f"{place or 'it'} has no {lacking[0]!r}"
        known = dict.fromkeys(value, schema[...]) if ... in schema else {k.rstrip("?"): of for k, of in schema.items()}
        parts = [(value[key], of, f"{place}.{key}".lstrip(".")) for key, of in known.items() if key in value]
    elif not _fits(value, schema):
        shown = json.dumps(value)
        if isinstance(value, (dict, list)):
            shown = f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
        return f"{place or 'it'} is {shown if len(shown) <= 60 else shown[:57] + '...'}, expected {_expected(schema)}"
    return next((told for part in parts if (told := mismatch(*part))), None)


def _fits(value: Any, schema: Any) -> bool:
    """Whether a value without parts does."""
    if isinstance(schema, re.Pattern):
        return isinstance(value, str) and bool(schema.fullmatch(value))
    if isinstance(schema, Between):
        return _fits(value, schema.kind) and schema.low <= value <= schema.high
    if isinstance(value, bool) or isinstance(schema, (list, dict)):
        return schema is bool
    return value is None if schema is None else isinstance(value, (int, float) if schema is float else schema)


def _expected(schema: Any) -> str:
    if isinstance(schema, Between):
        return f"{'a whole number' if schema.kind is int else 'a number'} from {schema.low:g} to {schema.high:g}"
    if isinstance(schema, re.Pattern):
        return {LINE: "a line of text", HASH: "a hash", PNG: "the name of a PNG"}.get(schema, schema.pattern)
    if isinstance(schema, (list, dict)):
        return "a list" if isinstance(schema, list) else "an object" if schema else "an empty object"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
    return names.get(schema, "null")


def reason(error: BaseException) -> str:
    """The first line of an error, short and printable: files' contents get into such texts."""
    return printable((str(error).splitlines() or [type(error).__name__])[0][:200])
