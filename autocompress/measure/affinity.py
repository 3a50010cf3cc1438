"""Threads held to cores of their own while a latency is taken.

The kernel moves a thread from core to core as it sees fit, and each move costs the caches' contents. During a reading
the threads that compute stay on as many cores, the least busy ones; every other thread of the process is left alone.
Which threads compute is seen, not asked: they are those that ran during an inference. So a runtime's own pool is held
too, whichever runtime it is.

Linux only: elsewhere nothing is held, and nothing is claimed.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

_TASKS = Path("/proc/self/task")
_STAT = Path("/proc/stat")
_TOPOLOGY = Path("/sys/devices/system/cpu")
#: Share of the busiest thread's time from which on a thread counts as one that computes.
_SHARE = 0.1
#: How long cores are watched to find the least busy ones, in seconds; the kernel counts in hundredths.
WATCH_S = 0.1


def thread_times() -> dict[int, int]:
    """Thread id -> nanoseconds that it has run, of all threads of this process; empty where the system does not say."""
    times: dict[int, int] = {}
    if not _TASKS.is_dir():
        return times
    for task in _TASKS.iterdir():
        try:
            times[int(task.name)] = int((task / "schedstat").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            continue  # a thread that has just ended, or a kernel without these counters
    return times


def computing(before: dict[int, int], after: dict[int, int]) -> set[int]:
    """Threads that computed between two calls of `thread_times`; the calling thread is always one of them."""
    ran = {thread: time - before.get(thread, 0) for thread, time in after.items()}
    most = max(ran.values(), default=0)
    return {thread for thread, time in ran.items() if most > 0 and time >= _SHARE * most} | {threading.get_native_id()}


def quietest(count: int, watch_s: float = WATCH_S) -> tuple[int, ...]:
    """The cores that were least busy within `watch_s` seconds, out of those that this process may use.

    Of cores that were equally busy (to a tenth), those of unlike physical cores come first, then the last ones, since
    the system's own work is mostly on the first.

    Returns:
        At most `count` cores, sorted; empty where the system cannot hold a thread to a core, or where that would be
        all of the machine's.
    """
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = os.sched_getaffinity(0)
    if len(allowed) <= count:
        # Nothing to choose. If it has been held to these already, say so.
        return tuple(sorted(allowed)) if len(allowed) < (os.cpu_count() or 1) else ()
    before = _busy()
    time.sleep(watch_s)
    after = _busy()
    ticks = watch_s * os.sysconf("SC_CLK_TCK")

    def rank(core: int) -> tuple[int, int, int]:
        busy = (after.get(core, 0) - before.get(core, 0)) / ticks
        return (round(10 * busy), _sibling(core), -core)

    return tuple(sorted(sorted(allowed, key=rank)[:count]))


@contextmanager
def held(threads: Collection[int], cores: Collection[int]) -> Iterator[tuple[int, ...]]:
    """Hold threads of this process to cores, and let each go where it was afterwards.

    Args:
        threads: ids, as from `computing`.
        cores: empty to hold none.

    Yields:
        The cores, sorted; empty if nothing is held, because the system refused.
    """
    earlier: dict[int, set[int]] = {}
    try:
        refused = not cores
        for thread in () if refused else threads:
            try:
                mask = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, cores)
            except ProcessLookupError:
                continue  # it has ended
            except OSError:
                refused = True
                break
            earlier[thread] = mask
        if refused:
            _release(earlier)
            earlier.clear()
        yield () if refused else tuple(sorted(cores))
    finally:
        _release(earlier)


def _release(masks: dict[int, set[int]]) -> None:
    for thread, mask in masks.items():
        try:
            os.sched_setaffinity(thread, mask)
        except OSError:
            continue  # it has ended


def _busy() -> dict[int, int]:
    """Core -> ticks that it has worked, for anyone."""
    busy: dict[int, int] = {}
    for line in _STAT.read_text().splitlines() if _STAT.is_file() else ():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit():
            idle = int(ticks[3]) + int(ticks[4])  # idle, and waiting for a disk
            busy[int(name[3:])] = sum(map(int, ticks[:8])) - idle
    return busy


def _sibling(core: int) -> int:
    """Position of a core among the hardware threads of its physical core, from 0."""
    path = _TOPOLOGY / f"cpu{core}" / "topology" / "thread_siblings_list"
    try:
        listed = path.read_text().strip()
    except OSError:
        return 0
    siblings: list[int] = []
    for part in listed.split(","):
        first, _, last = part.partition("-")
        siblings += range(int(first), int(last or first) + 1)
    return siblings.index(core) if core in siblings else 0
