"""Which cores measure and which train, and how a process is moved between them.

Linux only: elsewhere a process cannot be held to cores, and asking for it is an error.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil

from autocompress.errors import MeasurementError


@dataclass(frozen=True)
class Cores:
    """A machine's cores, divided.

    Attributes:
        home: those that this process may use when nothing is measured.
        measuring: those of the process that measures: the last ones, since the system's own work is mostly on the
            first.
        training: the others.
    """

    home: frozenset[int]
    measuring: frozenset[int]
    training: frozenset[int]


def divide(threads: int, allowed: Collection[int] | None = None) -> Cores:
    """Keep as many cores for measuring as threads share an inference.

    Args:
        threads: of one inference.
        allowed: cores to divide; those that this process may use if None.

    Raises:
        MeasurementError: no core is left to train on, or the system cannot hold a process to cores.
    """
    if allowed is None:
        if not hasattr(os, "sched_getaffinity"):
            raise MeasurementError(
                "measure.exclusive: expected 'wait' on a system that cannot hold a process to cores, got 'move'"
            )
        allowed = _home()
    ordered = sorted(allowed)
    if len(ordered) <= threads:
        raise MeasurementError(
            f"measure.exclusive: 'move' needs at least one core beside the {threads} that measure (target.threads), "
            f"got {len(ordered)} in all: use 'wait', or fewer threads"
        )
    return Cores(frozenset(ordered), frozenset(ordered[-threads:]), frozenset(ordered[:-threads]))


@cache
def _home() -> frozenset[int]:
    """The cores that this process might use when it was first asked: it may have been moved since."""
    return frozenset(os.sched_getaffinity(0))


def move_here(cores: Collection[int], *, descendants: bool) -> None:
    """Hold this process to cores, with all its threads.

    Args:
        cores: where they may run.
        descendants: take them along, such as the loaders of data of a process that trains. A driver's are Ray's own
            processes, which have nothing to do with its readings.
    """
    processes = [os.getpid()]
    if descendants:
        with contextlib.suppress(psutil.Error):
            processes += [child.pid for child in psutil.Process().children(recursive=True)]
    for process in processes:
        for thread in _threads(process):
            # It has ended meanwhile, or has become another user's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.sched_setaffinity(thread, cores)


def _threads(process: int) -> list[int]:
    try:
        return [int(entry.name) for entry in Path(f"/proc/{process}/task").iterdir()]
    except OSError:
        return []
