"""What to propose where the values of masks are no class ids: every proposal is a flag that works as it is printed."""

from __future__ import annotations

from natural2nanoscale.data.classes import IGNORE_ID, MAX_CLASSES
from natural2nanoscale.data.prepare.settings import Mapping

MANY = 12  # more values than these are a question: numbered objects, or classes that nobody named


def flag(name: str, value: str) -> str:
    """A flag and its value, joined by = where argparse would take the value for a flag."""
    return f"`{name}={value}`" if value.startswith("-") else f"`{name} {value}`"


def mapped(given: Mapping, added: dict) -> str:
    """--map with the entries that were given already and more."""

    def spelled(key) -> str:
        return f"{key[0]}-{'' if key[1] is None else key[1]}" if isinstance(key, tuple) else str(key)

    entries = (given | added).items()
    return flag("--map", ",".join(f"{spelled(key)}={'ignore' if to == IGNORE_ID else to}" for key, to in entries))


def objects(values: list[int], given: Mapping) -> str:
    """For numbered objects: all of them one class; -1 is what marks unlabelled pixels beside them."""
    if values[0] < -1:
        return "save them as unsigned numbers, since those below -1 number neither classes nor objects"
    unlabelled = {-1: IGNORE_ID} if -1 in values else {}
    return f"pass {mapped(given, unlabelled | {(1, None): 1})} if they number objects"


def soft_edges(counts: dict[int, int], given: Mapping) -> str | None:
    """For masks of black and white that were smoothed, or saved as JPEG: most pixels are near 0 or 255."""
    dark, bright = ([n for value, n in counts.items() if low <= value < low + 32] for low in (0, 224))
    between = sum(counts.values()) - sum(dark) - sum(bright)
    if given or min(len(dark), len(bright)) < 2 or between > sum(bright):
        return None
    return "pass `--map 0-127=0,128-255=1` if they are black and white with soft edges"


def for_values(total: list[int], strays: list[int], names: tuple[str, ...], given: Mapping) -> str:
    """Flags for the values of masks that are not given (total, ascending) of which some (strays) are no class id."""
    plain = [value for value in total if value != 255]
    low, high = plain[0], plain[-1]
    contiguous = plain == list(range(low, high + 1)) and len(plain) > 1 and not given
    if len(strays) > MANY:
        many = " (so many values look like object numbers or grey values)"
        return f"{objects(plain, given)}{many}, else save class ids"
    shifted = names and not given and strays == [len(names)]  # 1..K for K classes, of which some may be absent
    if shifted and low == 0:
        return "pass `--labels-from 1` if 0 marks unlabelled pixels, or name one class more with --classes"
    if shifted or (contiguous and low not in (0, -1) and high - low < (len(names) or MAX_CLASSES)):
        first = min(low, 1) if shifted else low
        return f"pass {flag('--labels-from', str(first))} if {first} is the first class"
    ignored = mapped(given, {value: IGNORE_ID for value in strays})
    if strays == [-1]:
        return f"pass {ignored} if -1 marks unlabelled pixels"
    kept = len({*plain, *given.values()} - {*strays, IGNORE_ID})
    ways = [ignored] if kept > 1 or (kept and names) else []  # one class is none
    if names and not given and len(plain) <= len(names):
        order = mapped(given, {value: i for i, value in enumerate(plain)})
        return (
            f"pass {order} if these are the classes in their order, or {' or '.join(ways or [ignored])} to ignore some"
        )
    if not names and not given and len(total) <= MANY:
        ways.append(mapped({}, {v: i for i, v in enumerate(total) if v != i}))
    verb = "map" if ways and ignored not in ways else "map or ignore"
    return f"{verb} them, {' or '.join(ways or [ignored])}, or name all classes with --classes"
