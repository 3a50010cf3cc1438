"""The exclusive slot: while one process measures latency, nothing else of the study computes where it measures.

Candidates train side by side; a latency taken beside a training thread is wrong by a factor of two and more. So every
training step runs inside `ExclusiveSlot.training`, which many processes hold at once, and a latency reading runs inside
`ExclusiveSlot.measuring`, which one process holds alone. The locks are the kernel's: they vanish with their process.

There are two ways to keep training away. With ``wait`` no step runs during a reading. With ``move`` steps run on during
a reading, on the other cores: a step that begins while a reading is asked for or taken holds its own process to them,
and the first step after it lets the process go. Each process moves itself, so that a measuring process that dies leaves
nobody where it sent them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from autocompress.cluster.cores import Cores, divide, move_here
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
        cores: how many of them a reading computes on while training goes on beside it, on the others; None: training
            waits.

    Raises:
        MeasurementError: `cores` leaves none to train on, or the system cannot hold a process to cores.
    """

    def __init__(self, folder: Path, cores: int | None = None) -> None:
        self._cores = None if cores is None else divide(cores)
        folder.mkdir(parents=True, exist_ok=True)
        machine = _machine()
        self._turnstile = folder / f"turnstile-{machine}.lock"
        self._room = folder / f"room-{machine}.lock"

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Compute beside others. Hold it for one training step at a time: measuring waits for the step in hand.

        Not reentrant: a step inside a step of the same process may never begin.
        """
        if self._cores is not None:
            with self._training_moved(self._cores):
                yield
            return
        with _file(self._turnstile) as turnstile, _file(self._room) as room:
            fcntl.flock(turnstile, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_SH)
            fcntl.flock(turnstile, fcntl.LOCK_UN)
            yield

    @contextlib.contextmanager
    def _training_moved(self, cores: Cores) -> Iterator[None]:
        with _file(self._turnstile) as turnstile, _file(self._room) as room:
            # Shared, so that steps that begin together do not take each other for a reading.
            nobody_measures = _try(turnstile, fcntl.LOCK_SH)
            if nobody_measures:
                fcntl.flock(room, fcntl.LOCK_SH)
                fcntl.flock(turnstile, fcntl.LOCK_UN)
            wanted = cores.home if nobody_measures else cores.training
            if os.sched_getaffinity(0) != wanted:
                move_here(wanted, descendants=True)
            yield

    @contextlib.contextmanager
    def measuring(self, timeout_s: float = 600.0) -> Iterator[None]:
        """Compute alone, or alone on its cores. Must not be entered inside `training` of the same process.

        Args:
            timeout_s: how long to wait for the steps and readings of others, in seconds.

        Raises:
            MeasurementError: the slot was not free in time.
        """
        deadline = time.monotonic() + timeout_s
        with _file(self._turnstile) as turnstile, _file(self._room) as room:
            for lock in (turnstile, room):
                while not _try(lock, fcntl.LOCK_EX):
                    if time.monotonic() > deadline:
                        raise MeasurementError(
                            f"the measuring slot {self._room} was not free within {timeout_s:g} s; another process "
                            "holds it in a long training step or reading"
                        )
                    time.sleep(_POLL_S)
            if self._cores is None:
                yield
                return
            moved = os.sched_getaffinity(0) == self._cores.training
            move_here(self._cores.measuring, descendants=False)
            try:
                yield
            finally:
                move_here(self._cores.home, descendants=moved)


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


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip()[:8] if boot.is_file() else socket.gethostname()
