"""The ledger's file on one machine: Optuna's journal format, made safe against death in the middle of a write.

Optuna's own file backend takes a lock that outlives a killed process and stalls the next one for its grace period, and
a line that was cut off spoils the file once the next line is appended to it. Here the kernel holds the lock, and a cut
line is removed before the next write.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

#: Operations that begin a study or a trial, or change a trial's state: 0 create study, 4 create trial, 6 set state.
#: They are flushed to the disk, and all earlier lines with them; what they leave out, a power cut may take.
_DURABLE = frozenset({0, 4, 6})


class JournalFile(BaseJournalBackend):
    """Append-only file of JSON lines, readable by Optuna's own `JournalFileBackend`.

    Args:
        path: the file; made, with its folder, if it is missing.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = path.with_name(path.name + ".flock")
        self._reader = JournalFileBackend(str(path))

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Lines from a number on; a last line that was cut off is left out."""
        yield from self._reader.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines, all or none of them as far as later readers can tell."""
        data = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with self._lock.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self._path.open("rb+") as file:
                _remove_cut_line(file.fileno())
                file.seek(0, os.SEEK_END)
                file.write(data)
                file.flush()
                if any(log["op_code"] in _DURABLE for log in logs):
                    os.fsync(file.fileno())


def _remove_cut_line(descriptor: int) -> None:
    end = os.fstat(descriptor).st_size
    if end == 0 or os.pread(descriptor, 1, end - 1) == b"\n":
        return
    block = 1 << 16
    position = end
    while position > 0:
        start = max(0, position - block)
        newline = os.pread(descriptor, position - start, start).rfind(b"\n")
        if newline >= 0:
            os.ftruncate(descriptor, start + newline + 1)
            return
        position = start
    os.ftruncate(descriptor, 0)
