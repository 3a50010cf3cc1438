"""Ends a local Ray session with the process that started it: ``python -m autocompress.cluster.reaper FOLDER``.

When a driver is killed, Ray's own processes notice sooner or later, its agents and freshly started workers not at all.
So the driver starts this process first, which waits for the end of file on its standard input. The kernel closes that
pipe with the driver, however it dies. Then every process that has `FOLDER`, the session's own temporary folder, in its
command line or among its open files is killed, and the folder removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_LOOK_S = 0.1
#: Looks in a row that must find nothing: a process that was just being started has to show up.
_QUIET_LOOKS = 8
_AT_MOST_S = 15.0


@contextlib.contextmanager
def reaping(folder: Path) -> Iterator[None]:
    """Have the processes of the session in `folder` end with the block, or with this process."""
    reaper = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).resolve()), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # out of reach of Ctrl-C
    )
    try:
        yield
    finally:
        if reaper.stdin is not None:
            reaper.stdin.close()
        reaper.wait()


def main(folder: str) -> None:
    """Wait for the driver's end, then kill and clean up."""
    spared = {os.getpid(), os.getppid()}  # a driver that goes on may have a log of the session open
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1 << 10):
        pass
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
        traces = (entry / "cmdline").read_bytes().decode(errors="replace")
        for descriptor in (entry / "fd").iterdir():
            with contextlib.suppress(OSError):
                traces += "\n" + str(descriptor.readlink())
    return traces


if __name__ == "__main__":
    main(sys.argv[1])
