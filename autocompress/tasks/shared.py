"""Arrays of a file, in memory once for all processes of a machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from autocompress.errors import TaskError
from autocompress.files import flush, flush_folder, write_bytes

Arrays = dict[str, np.ndarray]

#: A smaller file is read by every process: it costs less memory than its decompressed copy costs disk.
SMALLEST_BYTES = 1 << 20
#: Raised when what is written changes its form.
_FORMAT = 1
_MANIFEST = "manifest.json"
_LOG = logging.getLogger(__name__)


def shared_arrays(
    path: str | Path,
    *,
    keys: Sequence[str] | None = None,
    make: Callable[[Arrays], Mapping[str, np.ndarray]] | None = None,
    form: str = "",
) -> Arrays:
    """Arrays of an ``.npz`` file whose memory all processes of this machine share.

    The first process that asks decompresses the file once, into plain arrays in ``~/.cache/autocompress/arrays``, which
    is the user's own (mode 0700). This one and all others map these into memory, so that the pages exist once however
    many processes read them, and a process starts without decompressing. What lies in the cache is found by the content
    of the file and checked by sha256 whenever it is mapped; what is damaged is made anew. The folder may be deleted at
    any time. A file below 1 MiB, or a cache that cannot be used (a full disk, a folder that others may write to), means
    arrays of the process's own; the latter is logged.

    Args:
        path: the ``.npz`` file; a pickled array in it is refused.
        keys: arrays to read; all of them where None.
        make: what is kept instead of the file's own arrays, made from them once: such as another order of axes, or a
            tokenized text. Anything that it raises is passed on, and nothing is kept.
        form: names what `make` does, for the cache; change it together with `make`.

    Returns:
        Name -> array. Writing to one changes the process's own copy of the page, neither the file nor what others see.

    Raises:
        TaskError: the file is missing, is no ``.npz`` file or lacks a key; or `make` is given without `form`.

    Examples:
        In a task function::

            arrays = shared_arrays("photos.npz")
            images = ImageTensors(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]), mean=..., std=...)
            train, rest = images.take(rows[:9000]), images.take(rows[9000:])  # shares the memory too
    """
    if make is not None and not form:
        raise TaskError("form: expected a name of what make does, got none; the cache tells results apart by it")
    path = Path(path).expanduser()
    if not path.is_file():
        raise TaskError(f"data: expected an .npz file, got {path}, which does not exist")
    with path.open("rb") as source:

        def read() -> Arrays:
            found = _read(source, path, keys)
            made = found if make is None else dict(make(found))
            objects = [name for name, array in made.items() if array.dtype.hasobject]
            if objects:
                raise TaskError(f"data: {path}: expected numbers or texts, got Python objects in {objects}")
            return made

        if os.fstat(source.fileno()).st_size < SMALLEST_BYTES:
            return read()
        identity = [_FORMAT, hashlib.file_digest(source, "sha256").hexdigest(), sorted(keys or []), form]
        name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
        try:
            folder = _private(Path.home() / ".cache" / "autocompress" / "arrays")
            with _locked(folder / f"{name}.lock", fcntl.LOCK_SH):
                arrays = _mapped(folder / name)
            if arrays is not None:
                return arrays
            with _locked(folder / f"{name}.lock", fcntl.LOCK_EX):
                arrays = _mapped(folder / name)  # another process may have been first
                if arrays is None:
                    _write(read(), folder / name)
                    arrays = _mapped(folder / name)
            if arrays is not None:
                return arrays
            problem = "what was written could not be read back"
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
            problem = str(error)
        _LOG.warning("%s: every process holds its own copy of these arrays: %s", path, problem)
        return read()


def _read(source: BinaryIO, path: Path, keys: Sequence[str] | None) -> Arrays:
    if not zipfile.is_zipfile(source):
        raise TaskError(f"data: {path} cannot be read as .npz (it is no archive of arrays, as numpy.savez writes)")
    source.seek(0)
    try:
        with np.load(source, allow_pickle=False) as file:
            missing = [key for key in keys or () if key not in file]
            if missing:
                raise TaskError(f"data: {path} lacks {missing}; it has {sorted(file)}")
            return {key: file[key] for key in (file if keys is None else keys)}
    except (ValueError, OSError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise TaskError(f"data: {path} cannot be read as .npz ({error})") from error


def _private(folder: Path) -> Path:
    """The folder, made if it is missing, once it is known that nobody else can write to it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise OSError(f"{folder} belongs to another user or can be written by others; expected it to be private (0700)")
    return folder


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, how)
        yield


def _mapped(entry: Path) -> Arrays | None:
    """The arrays of an entry; None if there is none, or if it is not what was written."""
    try:
        manifest = json.loads((entry / _MANIFEST).read_bytes())
        arrays: Arrays = {}
        for number, (name, digest) in enumerate(manifest.items()):
            # Copy on write: numpy and torch may treat it like any array, and no page is copied unless written to.
            array = np.load(entry / f"{number}.npy", mmap_mode=_mode(entry / f"{number}.npy"), allow_pickle=False)
            if _digest(array) != digest:
                raise ValueError(f"array {name!r} was changed after it was written")
            arrays[name] = array
        return arrays
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, EOFError, OSError) as error:
        _LOG.warning("%s is damaged and made anew: %s", entry, error)
        return None


def _mode(path: Path) -> Literal["c"] | None:
    """How to open it: an array without elements cannot be mapped."""
    with path.open("rb") as file:
        major, _ = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, _, _ = read(file)
    return "c" if 0 not in shape else None


def _write(arrays: Arrays, entry: Path) -> None:
    """Put an entry in its place, whole, synchronized, and in exchange for a damaged one."""
    for left in entry.parent.glob(f".{entry.name}.*"):  # of a process that was killed here
        shutil.rmtree(left, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=entry.parent, prefix=f".{entry.name}."))
    try:
        manifest = {}
        for number, (name, array) in enumerate(arrays.items()):
            plain = np.asarray(array, order="C")
            manifest[name] = _digest(plain)
            with (temporary / f"{number}.npy").open("wb") as file:
                np.save(file, plain, allow_pickle=False)
                flush(file)
        write_bytes(temporary / _MANIFEST, json.dumps(manifest).encode())
        if entry.exists():
            # Who has it mapped keeps its pages.
            entry.rename(temporary / "damaged")
            shutil.rmtree(temporary / "damaged")
        temporary.rename(entry)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush_folder(entry.parent)


def _digest(array: np.ndarray) -> str:
    """sha256 of kind of number, shape and values."""
    total = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    total.update(np.asarray(array, order="C").reshape(-1).view(np.uint8).data)
    return total.hexdigest()
