"""What is read from disk as JSON: the one reader. Whoever wrote a file is not trusted."""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from natural2nanoscale.errors import InputError
from natural2nanoscale.schemas import CONFIG, HASH, LINE, LOG_ROW, PNG, Between

LARGEST, LONGEST_LINE = 64_000_000, 1_000_000  # bytes of a file, and of one line of a file of lines
DEEPEST = 24


def read_json(path: Path, schema: Any, links: bool = False) -> Any:
    """The content of a JSON file; ValueError where it does not fit, OSError where it cannot be read.

    A link that leads out of the file's folder is not followed, unless `links`, as the hub's cache has them.
    """
    with open_regular(path, links) as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST:
        raise ValueError(f"more than {LARGEST} bytes")
    return parse(text, schema)


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


def read_lines(path: Path, schema: Any = LOG_ROW, strict: bool = False) -> list[dict]:
    """The JSON lines of a file, none where it does not exist; a last line that a kill cut short is left out.

    Other lines that do not fit are left out as well and told of; with `strict` they are an InputError.
    """
    rows, bad = [], []
    if not os.path.lexists(path):
        return rows
    try:
        for number, line in enumerate(_lines(path), 1):
            try:
                rows.append(parse(line, schema))
            except ValueError as error:
                if line.endswith(b"\n"):
                    bad.append(f"line {number}: {reason(error)}")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({reason(error)}): restore or remove it") from error
    if bad and strict:
        raise InputError(f"{path} is damaged ({bad[0]}): repeat the command that made the folder, which mends it")
    if bad:
        print(f"{path}: {len(bad)} damaged line(s) are left out ({bad[0]})")
    return rows


def _lines(path: Path) -> Iterator[bytes]:
    with open_regular(path) as file:
        while line := file.readline(LONGEST_LINE):
            yield line


def open_regular(path: Path, links: bool = True) -> BinaryIO:
    """Open a regular file for reading; OSError for anything else, on which opening or reading could wait for ever."""
    if not links and path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise OSError("it is a link that leads out of its folder")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is no regular file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def inside(folder: Path, name: str) -> Path:
    """The file of this name within a folder; ValueError for a path, or a link, that leads out of it."""
    path = folder / name
    if "\0" in name or Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} leads out of its folder")
    return path


def parse(text: bytes | str, schema: Any) -> Any:
    """JSON that fits the schema; ValueError, which names the place, for anything else."""
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        data = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
        if "\\u" in text:
            json.dumps(data, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        _check_depth(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    check(data, schema)
    return data


def check(value: Any, schema: Any, place: str = "") -> None:
    """Raise ValueError, which names the place, unless the value fits the schema."""
    wrong = mismatch(value, schema, place)
    if wrong:
        raise ValueError(wrong)


def mismatch(value: Any, schema: Any, place: str = "") -> str | None:
    """What does not fit, in words; None where all does."""
    if isinstance(schema, tuple):
        told = [mismatch(value, one, place) for one in schema]
        return None if None in told else told[-1]
    if isinstance(schema, re.Pattern):
        fits = isinstance(value, str) and schema.fullmatch(value)
    elif isinstance(schema, Between):
        fits = _is(value, schema.kind) and schema.low <= value <= schema.high
    elif isinstance(schema, list):
        fits = isinstance(value, list)
        if fits:
            return _first(mismatch(one, schema[0], f"{place}[{i}]") for i, one in enumerate(value))
    elif isinstance(schema, dict):
        fits = isinstance(value, dict) and (schema or not value)
        if fits and ... in schema:
            return _first(mismatch(one, schema[...], f"{place}.{key}") for key, one in value.items())
        if fits:
            lacking = [key for key in schema if not key.endswith("?") and key not in value]
            known = [(key.rstrip("?"), of) for key, of in schema.items()]
            wrong = _first(mismatch(value[key], of, f"{place}.{key}") for key, of in known if key in value)
            return f"{place.lstrip('.') or 'it'} has no {lacking[0]!r}" if lacking else wrong
    else:
        fits = value is None if schema is None else _is(value, schema)
    return None if fits else f"{place.lstrip('.') or 'it'} is {_shown(value)}, expected {_expected(schema)}"


def _first(told: Iterator[str | None]) -> str | None:
    return next((one for one in told if one), None)


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _expected(schema: Any) -> str:
    if isinstance(schema, Between):
        return f"{'a whole number' if schema.kind is int else 'a number'} from {schema.low:g} to {schema.high:g}"
    if isinstance(schema, re.Pattern):
        return {LINE: "a line of text", HASH: "a hash", PNG: "the name of a PNG"}.get(schema, schema.pattern)
    if isinstance(schema, list):
        return "a list"
    if isinstance(schema, dict):
        return "an object" if schema else "an empty object"
    names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}
    return names.get(schema, "null")


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"a whole number of {len(text)} digits")
    return int(text)


def _check_depth(data: Any) -> None:
    level = [data]
    for _ in range(DEEPEST):
        level = [one for value in level if isinstance(value, (dict, list))
                 for one in (value.values() if isinstance(value, dict) else value)]  # fmt: skip
        if not level:
            return
    raise ValueError("it is nested too deeply")


def reason(error: BaseException) -> str:
    """The first line of an error, short and printable: files' contents get into such texts."""
    text = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return "".join(c if c.isprintable() else "?" for c in text)
