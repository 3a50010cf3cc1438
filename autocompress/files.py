"""Files and folders that appear whole or not at all, and are still there after a loss of power."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import IO


def write_bytes(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a file whole or not at all: to a neighbour, flushed to disk, then renamed; an earlier one is replaced.

    The neighbour of a process that was killed here stays, as ``.<name>.<anything>``; nothing reads it.

    Args:
        path: the file; its folder is made if there is none.
        data: all of its content.
        mode: its permissions.

    Raises:
        OSError: it cannot be written; what was there before is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with neighbour.open("wb") as file:
            file.write(data)
            flush(file)
        neighbour.chmod(mode)
        neighbour.replace(path)
    finally:
        neighbour.unlink(missing_ok=True)
    flush_folder(path.parent)


def flush(file: IO[bytes]) -> None:
    """Have what was written to an open file on the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Have a folder's names on the disk: without it, a renamed file may be lost with its new name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
