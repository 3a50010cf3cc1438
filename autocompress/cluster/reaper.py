"""Ends what a process started with the process itself: ``python -m autocompress.cluster.reaper FOLDER``.

When a driver is killed, Ray's own processes notice sooner or later, its agents and freshly started workers not at all;
nor does Prefect's temporary server. So the driver starts this process first, which waits for the end of file on its
standard input. The kernel closes that pipe with the driver, however it dies. Then every process that has `FOLDER`, a
temporary folder of the driver's own, in its command line, its environment or among its open files is killed, and the
folder removed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_LOOK_S = 0.1
#: Looks in a row that must find nothing: a process that was just being started has to show up.
_QUIET_LOOKS = 8
_AT_MOST_S = 15.0
#: What a driver says that ends in order.
_IN_ORDER = b"in order"


@contextlib.contextmanager
def reaping(folder: Path) -> Iterator[None]:
    """Have the processes of the session in `folder` end with the block, or with this process."""
    reaper = _start(folder)
    try:
        yield
    finally:
        if reaper.stdin is not None:
            reaper.stdin.close()
        reaper.wait()


@cache
def guard_children() -> None:
    """From now on, let whatever this process starts die with it if it is killed; done once in a process.

    Children inherit an environment variable by which they are found. A process that ends in order has its own handlers
    end its children, after which the guard leaves in peace: call this before what starts servers, since handlers of
    `atexit` run in the reverse order.
    """
    folder = Path(tempfile.mkdtemp(prefix="autocompress-run-"))
    os.environ["AUTOCOMPRESS_RUN"] = str(folder)
    reaper = _start(folder)

    def leave() -> None:
        with contextlib.suppress(OSError):
            reaper.communicate(_IN_ORDER, timeout=_AT_MOST_S)

    atexit.register(leave)


def _start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).resolve()), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # out of reach of Ctrl-C
    )


def main(folder: str) -> None:
    """Wait for the driver's end, then kill and clean up."""
    spared = {os.getpid(), os.getppid()}  # a driver that goes on may have a log of the session open
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while said := os.read(0, 1 << 10):
        if said == _IN_ORDER:
            shutil.rmtree(folder, ignore_errors=True)
            return
    deadline = time.monotonic() + _AT_MOST_S
    quiet = 0
    while quiet < _QUIET_LOOKS and time.monotonic() < deadline:
        found = _processes(folder, spared)
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        quiet = 0 if found else quiet + 1
        time.sleep(_LOOK_S)
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: str, spared: set[int]) -> list[int]:
    """Living processes that name or hold something below `folder`."""
    entries = {int(entry.name): entry for entry in Path("/proc").glob("[0-9]*")}
    return [pid for pid, entry in entries.items() if pid not in spared and folder in _traces(entry)]


def _traces(entry: Path) -> str:
    traces = ""
    with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
        for file in ("cmdline", "environ"):
            traces += (entry / file).read_bytes().decode(errors="replace") + "\n"
        for descriptor in (entry / "fd").iterdir():
            with contextlib.suppress(OSError):
                traces += "\n" + str(descriptor.readlink())
    return traces


if __name__ == "__main__":
    main(sys.argv[1])
