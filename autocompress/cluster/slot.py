"""The exclusive slot: while one process measures latency, nothing else of the study computes on this machine.

Candidates train side by side; a latency taken beside a training thread is wrong by a factor of two and more. So every
training step runs inside `ExclusiveSlot.training`, which many processes hold at once, and a latency reading runs inside
`ExclusiveSlot.measuring`, which one process holds alone. The locks are the kernel's: they vanish with their process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from autocompress.errors import MeasurementError

#: Seconds between two looks at a lock that is taken.
_POLL_S = 0.002


class ExclusiveSlot:
    """A readers-writer lock over processes, in which a waiting writer is never starved.

    Two locks: everyone passes the turnstile, then takes the room, shared for training and alone for measuring. A
    measuring process holds the turnstile while it waits for the room, so that no new training step begins.

    The locks are one set per running kernel: machines that share a folder do not wait for each other, containers on
    one machine do.

    Args:
        folder: where the lock files lie; made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        machine = _machine()
        self._turnstile = folder / f"turnstile-{machine}.lock"
        self._room = folder / f"room-{machine}.lock"

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Compute beside others. Hold it for one training step at a time: measuring waits for the step in hand."""
        with _file(self._turnstile) as turnstile, _file(self._room) as room:
            fcntl.flock(turnstile, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_SH)
            fcntl.flock(turnstile, fcntl.LOCK_UN)
            yield

    @contextlib.contextmanager
    def measuring(self, timeout_s: float = 600.0) -> Iterator[None]:
        """Compute alone. Must not be entered inside `training` of the same process.

        Args:
            timeout_s: how long to wait for the steps and readings of others, in seconds.

        Raises:
            MeasurementError: the slot was not free in time.
        """
        deadline = time.monotonic() + timeout_s
        with _file(self._turnstile) as turnstile, _file(self._room) as room:
            for lock in (turnstile, room):
                while not _try(lock):
                    if time.monotonic() > deadline:
                        raise MeasurementError(
                            f"the measuring slot {self._room} was not free within {timeout_s:g} s; another process "
                            "holds it in a long training step or reading"
                        )
                    time.sleep(_POLL_S)
            yield


@contextlib.contextmanager
def _file(path: Path) -> Iterator[int]:
    # Opened anew each time: a lock belongs to the open file, so that threads of one process exclude each other too.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        # Unlocked by hand: a forked child of the user's code may still hold a copy of the open file.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip()[:8] if boot.is_file() else socket.gethostname()
