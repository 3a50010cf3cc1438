from __future__ import annotations

import logging
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from autocompress.errors import TaskError
from autocompress.pipeline.identity import dataset_digest
from autocompress.tasks import ImageTensors, InputTensors, shared_arrays
from autocompress.tasks import shared as module

MEGABYTE = 1 << 20


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(module, "SMALLEST_BYTES", 0)
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    np.savez_compressed(
        path,
        x=rng.integers(256, size=(50, 4, 4), dtype=np.uint8),
        fortran=np.asfortranarray(rng.normal(size=(5, 3))),
        scalar=np.float32(2.5),
        none=np.zeros((0, 3), np.int64),
        words=np.array(["a", "long word"]),
    )
    return path


def entries(home: Path) -> list[Path]:
    return [path for path in (home / ".cache" / "autocompress" / "arrays").iterdir() if path.suffix != ".lock"]


def test_arrays_are_those_of_the_file_and_mapped(home: Path, source: Path) -> None:
    for _ in range(2):  # written, then found
        arrays = shared_arrays(source)
        with np.load(source) as file:
            assert sorted(arrays) == sorted(file)
            for name in file:
                np.testing.assert_array_equal(arrays[name], file[name], strict=True)
        assert isinstance(arrays["x"], np.memmap)
    (entry,) = entries(home)
    for path in (entry, entry.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_write_stays_in_the_process_and_out_of_the_cache(home: Path, source: Path) -> None:
    first = shared_arrays(source)
    torch.from_numpy(first["x"]).zero_()
    assert first["x"].max() == 0
    assert shared_arrays(source)["x"].max() > 0


def test_another_content_is_another_entry_whatever_its_name_and_time(home: Path, source: Path) -> None:
    shared_arrays(source)
    before = source.stat()
    np.savez(source, x=np.ones(3))
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert shared_arrays(source)["x"].tolist() == [1.0, 1.0, 1.0]
    assert len(entries(home)) == 2
    source.rename(source.with_name("other.npz"))
    shared_arrays(source.with_name("other.npz"))
    assert len(entries(home)) == 2, "the same content needs no second entry"


def test_keys_and_forms_are_entries_of_their_own(home: Path, source: Path) -> None:
    assert list(shared_arrays(source, keys=["scalar"])) == ["scalar"]
    made = shared_arrays(source, keys=["x"], make=lambda a: {"y": a["x"].astype(np.int64) * 2}, form="twice")
    np.testing.assert_array_equal(made["y"], 2 * shared_arrays(source)["x"].astype(np.int64))
    again = shared_arrays(source, keys=["x"], make=lambda a: pytest.fail("made twice"), form="twice")
    np.testing.assert_array_equal(again["y"], made["y"])
    with pytest.raises(TaskError, match="form: expected a name of what make does, got none"):
        shared_arrays(source, make=lambda a: a)


def harmed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["0.npy", "manifest.json"])
@pytest.mark.parametrize("how", ["changed", "cut off", "missing"])
def test_a_damaged_entry_is_made_anew(
    home: Path, source: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = {key: array.copy() for key, array in shared_arrays(source).items()}
    path = entries(home)[0] / name
    if how == "changed":
        harmed(path)
    elif how == "cut off":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.unlink()
    with caplog.at_level(logging.WARNING):
        again = shared_arrays(source)
    assert all(np.array_equal(again[key], array) for key, array in good.items())
    assert ("is damaged and made anew" in caplog.text) == (how != "missing")
    caplog.clear()
    shared_arrays(source)
    assert caplog.text == "", "and is good from then on"


def test_nothing_pickled_is_opened_neither_in_the_file_nor_in_the_cache(home: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (os.system, (f"touch {tmp_path}/ran",))

    np.savez(tmp_path / "bad.npz", x=np.array([Payload()], dtype=object))
    with pytest.raises(TaskError, match=r"bad\.npz cannot be read as \.npz"):
        shared_arrays(tmp_path / "bad.npz")
    np.savez(tmp_path / "good.npz", x=np.arange(3))
    shared_arrays(tmp_path / "good.npz")
    np.save(entries(home)[0] / "0.npy", np.array([Payload()], dtype=object), allow_pickle=True)
    assert shared_arrays(tmp_path / "good.npz")["x"].tolist() == [0, 1, 2]
    assert not (tmp_path / "ran").exists()
    objects = np.array([{}], dtype=object)
    with pytest.raises(TaskError, match=r"expected numbers or texts, got Python objects in \['o'\]"):
        shared_arrays(tmp_path / "good.npz", make=lambda a: {"o": objects}, form="objects")


def test_what_cannot_be_read_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"expected an \.npz file, got .*no\.npz, which does not exist"):
        shared_arrays(tmp_path / "no.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(TaskError, match=r"text\.npz cannot be read as \.npz"):
        shared_arrays(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", np.arange(3))
    with pytest.raises(TaskError, match=r"one\.npy cannot be read as \.npz \(it is no archive"):
        shared_arrays(tmp_path / "one.npy")
    np.savez(tmp_path / "d.npz", x=np.arange(3))
    with pytest.raises(TaskError, match=r"d\.npz lacks \['y'\]; it has \['x'\]"):
        shared_arrays(tmp_path / "d.npz", keys=["x", "y"])
    assert not (home / ".cache" / "autocompress" / "arrays").exists() or entries(home) == []


def test_a_small_file_is_read_by_everyone(home: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST_BYTES", MEGABYTE)
    assert not isinstance(shared_arrays(source)["x"], np.memmap)
    assert not home.exists()


@pytest.mark.parametrize("problem", ["others", "file"])
def test_without_a_private_folder_everyone_holds_a_copy_and_it_is_said(
    home: Path, source: Path, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = home / ".cache" / "autocompress" / "arrays"
    folder.parent.mkdir(parents=True)
    if problem == "others":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.touch()
    with caplog.at_level(logging.WARNING):
        arrays = shared_arrays(source)
    assert arrays["x"].shape == (50, 4, 4)
    assert "every process holds its own copy of these arrays" in caplog.text
    assert ("can be written by others" in caplog.text) == (problem == "others")


def test_what_a_killed_writer_left_is_removed(home: Path, source: Path) -> None:
    shared_arrays(source)
    (entry,) = entries(home)
    left = entry.with_name(f".{entry.name}.killed")
    left.mkdir()
    (left / "0.npy").write_bytes(b"half")
    (entry / "manifest.json").unlink()
    shared_arrays(source)
    assert entries(home) == [entry]


_USE = """
import sys
from autocompress.tasks import shared
shared.SMALLEST_BYTES = 0
made = []
def make(arrays):
    made.append(1)
    return arrays
total = int(shared.shared_arrays(sys.argv[1], keys=["x"], make=make, form="counted")["x"].sum())
print(len(made), total)
"""


@pytest.mark.slow
def test_of_several_first_users_one_writes(home: Path, source: Path) -> None:
    users = [
        subprocess.Popen([sys.executable, "-c", _USE, str(source)], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    said = [user.communicate(timeout=120)[0].split() for user in users]
    assert sorted(int(made) for made, _ in said) == [0, 0, 0, 1]
    with np.load(source) as file:
        assert {int(total) for _, total in said} == {int(file["x"].sum())}


def _hold(path: str, ready: multiprocessing.connection.Connection) -> None:
    arrays = shared_arrays(path)
    total = int(arrays["x"].sum())
    ready.send((total, psutil.Process().memory_full_info().uss))
    ready.recv()


@pytest.mark.slow
def test_processes_share_the_pages(home: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "big.npz", x=np.full(64 * MEGABYTE, 3, np.uint8))
    shared_arrays(tmp_path / "big.npz")
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=_hold, args=(str(tmp_path / "big.npz"), theirs)) for _, theirs in pairs]
    for process in processes:
        process.start()
    try:
        for own, _ in pairs:
            assert own.recv()[0] == 3 * 64 * MEGABYTE
        held = [psutil.Process(process.pid).memory_maps(grouped=False) for process in processes]
        for maps in held:
            mapped = [part for part in maps if part.path.endswith(".npy")]
            assert sum(part.rss for part in mapped) >= 64 * MEGABYTE
            assert sum(part.private_dirty + part.private_clean for part in mapped) < MEGABYTE
    finally:
        for own, _ in pairs:
            own.send(None)
        for process in processes:
            process.join(30)


def test_parts_of_a_dataset_share_its_memory() -> None:
    pixels = torch.randint(256, (10, 1, 4, 4), dtype=torch.uint8)
    data = ImageTensors(pixels, torch.arange(10), mean=(0.5,), std=(0.2,))
    rows = torch.tensor([7, 2, 5])
    part = data.take(rows)
    copied = ImageTensors(pixels[rows], rows, mean=(0.5,), std=(0.2,))
    assert dataset_digest(part) == dataset_digest(copied)
    assert part.take(torch.tensor([2])).targets.tolist() == [5]
    assert torch.equal(part.take(torch.tensor([2])).images, pixels[5:6])
    whole = InputTensors({"x": pixels, "y": 2 * pixels}, torch.arange(10))
    few = whole.take(rows)
    assert dataset_digest(few) == dataset_digest(InputTensors({"x": pixels[rows], "y": 2 * pixels[rows]}, rows))
    pixels += 1
    assert torch.equal(part.images, pixels[rows])
    inputs, target = few[1]
    assert isinstance(inputs, dict)
    assert torch.equal(inputs["x"], pixels[2])
    assert target == 2
