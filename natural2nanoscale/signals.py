"""The signals that end a run in order: a loop asks between two steps, saves, and leaves."""

from __future__ import annotations

import signal
import time

# Ctrl-C; a scheduler's end; a lost terminal; a scheduler's notice (SLURM's --signal). Windows knows the first two.
STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
]  # fmt: skip
ECHO = 1.0  # seconds within which one notice may come twice: the shell and the kernel both tell of a lost terminal


class Interrupted(KeyboardInterrupt):
    """A loop stopped on request after it had saved; the message says how to go on. Exit code: 128 + `number`."""

    def __init__(self, message: str, number: int = signal.SIGINT):
        super().__init__(message)
        self.number = int(number)


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """As a shell counts: 128 and the number of the signal."""
    return 128 + getattr(interrupt, "number", signal.SIGINT)


class StopSignal:
    """Within it the first signal only sets `number`, which is 0 before; a second one raises Interrupted at once.

    What is ignored already stays ignored, as nohup wants it.
    """

    number = 0

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.number != 0

    def __enter__(self) -> StopSignal:
        self.number, self._came = 0, 0.0
        wanted = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._handle) for number in wanted}
        return self

    def _handle(self, number: int, frame: object) -> None:
        if self.number == number and time.monotonic() - self._came < ECHO:
            return
        if self.number:
            raise Interrupted("at once, with what was last saved", number)
        self.number, self._came = number, time.monotonic()

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
