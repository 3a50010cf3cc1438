"""Stop on SIGINT and SIGTERM at a safe point: the ledger is never left in the middle of a write."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from autocompress.errors import InterruptedStudyError


class Stop:
    """Whether the user asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def error(self, where: str) -> InterruptedStudyError:
        """The error to end with; `where` says what was done so far, such as ``"after 7 of 24 trials"``."""
        name = signal.Signals(self.signal or signal.SIGINT).name
        return InterruptedStudyError(f"stopped by {name} {where}; the same command continues")


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of dying of them; a second one raises KeyboardInterrupt at once.

    Signals reach a process in its main thread: in another thread nothing is installed, and the caller's own handlers
    stay. They are put back at the end in any case.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.signal = number

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
