"""How a command ends: its result, one line about what was wrong, or a signal; and what it held is given back."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from contextlib import suppress

from natural2nanoscale import locks
from natural2nanoscale.errors import InputError
from natural2nanoscale.signals import exit_code
from natural2nanoscale.text import printable


def main_guard(parse: Callable[[], argparse.Namespace], run: Callable[[argparse.Namespace], None]) -> None:
    """Run a front door: bad input prints one line and exits 2, a signal exits 128 + its number; no tracebacks."""
    args = argparse.Namespace()
    try:
        args = parse()
        run(args)
    except KeyboardInterrupt as interrupt:
        with suppress(OSError):  # the terminal may be gone
            print(f"interrupted {interrupt}".rstrip(), file=sys.stderr)
        raise SystemExit(exit_code(interrupt)) from None
    except BrokenPipeError:
        raise SystemExit(1) from None
    except Exception as error:
        said = in_a_sentence(error, args)
        if not said:
            raise
        print(f"error: {printable(said)}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        locks.release_all()


def in_a_sentence(error: Exception, args: argparse.Namespace) -> str | None:
    """What went wrong, to whom a traceback says nothing; None for a fault of the program."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, RecursionError):  # files of other libraries' formats, such as a diffusers config
        return "one of the files that were read is nested too deeply: take it from a copy"
    if isinstance(error, OSError):  # no right, no room, a file where a folder is needed: the system says it best
        named = f" in {error.filename}" if error.filename else ", in a file that the system does not name"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left on the disk{named}: make room, also where temporary files lie, then go on"
        if error.filename and error.strerror:
            remedy = "check that it is there and may be read and written"
            return f"{error.filename} cannot be used ({error.strerror}): {remedy}"
        return str(error) or type(error).__name__
    # what torch and safetensors, imported by now or not at all, say of memory and disks
    torch, safetensors = sys.modules.get("torch"), sys.modules.get("safetensors")
    reason = (str(error).splitlines() or [""])[0]
    on_gpu = torch and isinstance(error, torch.OutOfMemoryError)
    if on_gpu or (torch and "can't allocate memory" in reason):
        return f"out of memory ({reason}): {lighter(args, on_gpu)}"
    if safetensors and isinstance(error, safetensors.SafetensorError):
        return f"weights are damaged or cannot be written ({reason}): copy them again, or look at the disk"
    return None


def lighter(args: argparse.Namespace, on_gpu: bool) -> str:
    """What would take less memory, of what this command has: its arguments are the fields of `args`."""
    known = {
        "batch_size": "fewer slices at once (--batch-size)",
        "unet_batch": "fewer windows at once (--unet-batch)",
        "crop": "smaller windows (--crop)",
        "unet_crop": "smaller windows for the U-Nets (--unet-crop)",
        "data": "smaller slices, which `python -m natural2nanoscale prepare --size` cuts",
        "images": "smaller slices (--images)",
        "size": "smaller tiles (--size)",
    }
    found = [advice for name, advice in known.items() if name in args]
    if on_gpu and "device" in args:
        found.append("--device cpu")
    return f"take {', or '.join(found)}" if found else "free some, or take a larger machine"
