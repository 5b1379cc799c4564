"""What the scripts and the verbs share: parsers, argument types and exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from natural2nanoscale.errors import InputError
from natural2nanoscale.records import read_config

T = TypeVar("T")
# where folders lie by default
DATA, CONTROLNET_RUN, UNET_RUN = Path("data"), Path("runs/controlnet"), Path("runs/unet")


class Help(argparse.HelpFormatter):
    """Names the default of every argument that has one and whose help does not."""

    def _get_help_string(self, action: argparse.Action) -> str:
        untold = (None, False, (), argparse.SUPPRESS)
        told = "(default" in action.help or any(action.default is value for value in untold)
        shown = "x".join(map(str, action.default)) if isinstance(action.default, tuple) else "%(default)s"
        return action.help if told else f"{action.help} (default: {shown})"


def setting(value: object, text: str, kind: Callable | None = None, flag: str | None = None, **argument: object) -> Any:
    """A field of a settings dataclass together with its flag: `kind` is argparse's type, `argument` the rest of it.

    The field is `value` by default, and so is the flag unless `argument` has another default. The flag is called as the
    field is unless `flag` says otherwise; a field that is False by default is a switch.
    """
    if kind is not None:
        argument = {"type": kind, "metavar": "N", **argument}
    elif value is False and not argument:
        argument["action"] = "store_true"
    return dataclasses.field(default=value, metadata={"flag": flag, "argument": {"help": text, **argument}})


def flags_of(settings: type) -> dict[str, tuple[str, dict]]:
    """Field name -> (flag, keyword arguments of argparse) for the fields that `setting` made."""
    flags = {}
    for field in dataclasses.fields(settings):
        if field.metadata:
            flag = field.metadata["flag"] or "--" + field.name.replace("_", "-")
            default = None if field.default is dataclasses.MISSING else field.default
            flags[field.name] = flag, {"default": default, **field.metadata["argument"]}
    return flags


def add_settings(parser: argparse.ArgumentParser, settings: type) -> None:
    """One flag for every field of a settings dataclass that `setting` made, with its default and help."""
    for flag, argument in flags_of(settings).values():
        parser.add_argument(flag, **argument)


def settings_from(args: argparse.Namespace, settings: type[T], **given: object) -> T:
    """The settings that the flags spell; `given` are the fields that have no flag, or that go before it."""
    flags = {name: flag.removeprefix("--").replace("-", "_") for name, (flag, _) in flags_of(settings).items()}
    return settings(**{name: getattr(args, flag) for name, flag in flags.items()} | given)


class Parser(argparse.ArgumentParser):
    """The one kind of parser of scripts and verbs. A flag is written in full: an abbreviated one is unknown, for what
    asks whether a flag was given, as --resume does, would not see it."""

    def __init__(self, **options: object):
        super().__init__(**{"formatter_class": Help, "allow_abbrev": False} | options)


def parse_resumable(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; with --resume those that are not given are those that the run in --out began with."""
    args = parser.parse_args()
    if args.resume:
        saved = read_config(args.out).get("arguments", {})
        if any(word.startswith("--epochs") for word in sys.argv):  # else a --max-steps of old would go before it
            saved.pop("max_steps", None)
        parser.set_defaults(**remembered(parser, saved, args.out))
        args = parser.parse_args()
    return args


OF_THE_CALL = ("help", "resume", "out", "device")  # arguments that a resumed run may not take over


def remembered(parser: argparse.ArgumentParser, saved: dict, out: Path) -> dict:
    """The arguments that a run began with, read as if they were typed; InputError for one that could not be."""
    values = {}
    for action in parser._actions:
        if action.dest in OF_THE_CALL or action.dest not in saved:
            continue
        value = saved[action.dest]
        try:
            if value is None and action.default is None:
                continue
            if isinstance(value, bool) != (action.nargs == 0) or not isinstance(value, (bool, int, float, str, list)):
                raise ValueError
            if not isinstance(value, bool):
                text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
                value = action.type(text) if action.type else text
            if action.choices and value not in action.choices:
                raise ValueError
        except (ValueError, argparse.ArgumentTypeError):
            raise InputError(
                f"{out}/config.json says that {action.option_strings[0]} was {str(value)[:60]!r}, which it cannot have "
                "been: restore the file from a copy, or give the argument anew in another --out"
            ) from None
        values[action.dest] = value
    return values


def resumable(args: argparse.Namespace) -> dict:
    """The arguments as JSON for config.json, without those that a resumed run may not take over."""
    named = {name: value for name, value in vars(args).items() if name not in OF_THE_CALL}
    return {name: str(value) if isinstance(value, Path) else value for name, value in named.items()}


def size(text: str) -> tuple[int, int]:
    """Argument type of WxH in pixels -> (width, height)."""
    try:
        width, height = (int(part) for part in text.lower().split("x"))
        if width < 1 or height < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WxH in pixels, such as 896x512") from None
    return width, height


def shard(text: str) -> tuple[int, int]:
    """Argument type of i/n, the i-th of n shares, i from 1."""
    try:
        index, count = (int(part) for part in text.split("/"))
        if not 1 <= index <= count:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no share such as 1/4 or 4/4") from None
    return index, count


def at_least(minimum: float, kind: type = int) -> Callable[[str], float]:
    """Argument type of a finite number that is not below `minimum`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        limit = 2**63 if kind is int else float("inf")  # of what can be read back
        if not minimum <= value < limit:
            most = f" and less than {limit}" if value >= limit else ""
            raise argparse.ArgumentTypeError(f"{text} is out of range, expected {minimum} or more{most}")
        return value

    return parse


def command(start: str, *words: object, **flags: object) -> str:
    """A command line to be copied, quoted for the shell: `start`, the words, and the flags that have a value.

    `data` and `controlnet`, which all commands have in common, are left out where they are the default.
    """
    known = {"data": DATA, "controlnet": CONTROLNET_RUN}
    told = {name: value for name, value in flags.items() if value is not None and value != known.get(name)}
    pairs = [part for name, value in told.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return " ".join([start, *(shlex.quote(str(part)) for part in (*words, *pairs))])


def this_call(*without: str) -> str:
    """The command line that is running, to be copied, without some flags and their values."""
    words = list(sys.argv)
    for flag in without:
        words = [word for word in words if not word.startswith(f"{flag}=")]
        if flag in words:
            del words[words.index(flag) : words.index(flag) + 2]
    return shlex.join(["python", *words])


def refuse_torchrun() -> None:
    """Raise InputError where torchrun has started several processes of a command that runs in one."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise InputError(
            f"{Path(sys.argv[0]).name} runs in one process, found {os.environ['WORLD_SIZE']} that would write the same "
            "files: start it with python; train_controlnet.py alone takes torchrun"
        )
