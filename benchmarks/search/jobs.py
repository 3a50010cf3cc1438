"""Processes side by side, each on a core of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import TypeVar

Job = TypeVar("Job")


def cores(count: int) -> list[int]:
    """As many cores as there may be jobs at once.

    Raises:
        ValueError: the machine has fewer.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= count <= len(allowed):
        raise ValueError(f"jobs: expected 1 to {len(allowed)}, one for each core, got {count}")
    return allowed[:count]


def side_by_side(jobs: Sequence[Job], count: int, work: Callable[[Job, int], None], until: float) -> list[Job]:
    """Do jobs, `count` at once, in their order; the core is the second argument.

    The first that raises ends it, after those that are under way.

    Args:
        jobs: what is to be done.
        count: how many at once.
        work: does one.
        until: by `time.monotonic`; no job begins later.

    Returns:
        Jobs that were not begun.
    """
    queue: Queue[Job] = Queue()
    for job in jobs:
        queue.put(job)
    errors: list[BaseException] = []

    def loop(core: int) -> None:
        while not errors and time.monotonic() < until:
            try:
                job = queue.get_nowait()
            except Empty:
                return
            try:
                work(job, core)
            except BaseException as error:  # noqa: BLE001 - raised below
                errors.append(error)

    threads = [Thread(target=loop, args=(core,)) for core in cores(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return list(queue.queue)


@contextmanager
def served(command: Sequence[str | Path]) -> Iterator[Callable[[str], str]]:
    """A process that answers each line with one.

    Raises:
        RuntimeError: it ended without an answer.
    """
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("the process has no pipes")
        into, out = process.stdin, process.stdout

        def ask(line: str) -> str:
            into.write(line + "\n")
            into.flush()
            text = out.readline()
            if not text:
                raise RuntimeError(f"{command[1]} ended with {process.wait()} on {line[:200]}")
            return text

        try:
            yield ask
        finally:
            into.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
