"""The killable process, with real faults in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from autocompress.cluster.process import KillableWorker
from autocompress.errors import WorkerError
from autocompress.records import EvaluatorReference

TOY = Path(__file__).parents[1] / "search" / "toy_evaluator.py"
MEMORY_GB = 0.3


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[KillableWorker]:
    worker = KillableWorker(EvaluatorReference(factory=f"{TOY}:build"), tmp_path, MEMORY_GB)
    yield worker
    worker.close()


def ask(worker: KillableWorker, what: str, timeout_s: float = 10.0) -> dict[str, object]:
    return worker.call({"do": what}, timeout_s)


def failing(worker: KillableWorker, what: str, timeout_s: float = 10.0) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        ask(worker, what, timeout_s)
    assert str(caught.value).startswith(f"{caught.value.kind}: ")
    return caught.value


def gone(pid: int | None) -> bool:
    return pid is None or not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_one_process_answers_many_requests(worker: KillableWorker) -> None:
    assert worker.pid is None
    pids = {ask(worker, "")["pid"] for _ in range(5)}
    assert pids == {worker.pid}


def test_what_user_code_prints_goes_to_the_log_and_forges_no_reply(worker: KillableWorker, tmp_path: Path) -> None:
    assert ask(worker, "print") == {"printed": True}
    assert "forged" in next(tmp_path.glob("worker-*.log")).read_text()


def test_large_reply_and_large_request_pass(worker: KillableWorker) -> None:
    assert ask(worker, "large") == {"text": "x" * 3_000_000}
    text = "y" * 2_000_000
    assert worker.call({"do": "", "text": text}, 10)["echo"] == {"do": "", "text": text}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("raise", "RuntimeError: boom"),
        ("export", "export: operator not supported"),
        ("exit", "exit: the code called sys.exit(3)"),
        ("memory-error", "oom: MemoryError"),
        ("not-json", "TypeError: Object of type object is not JSON serializable"),
        ("not-dict", "TypeError: expected the evaluator to return a dict, got list: [1, 2]"),
    ],
)
def test_what_the_evaluator_raises_is_named_and_its_process_goes_on(
    worker: KillableWorker, fault: str, expected: str
) -> None:
    pid = ask(worker, "")["pid"]
    assert str(failing(worker, fault)) == expected
    assert ask(worker, "")["pid"] == pid


@pytest.mark.parametrize(
    ("fault", "expected"),
    [("hard-exit", "exit code 7"), ("segfault", "signal 11"), ("kill", "signal 9")],
)
def test_a_death_is_named_and_the_next_request_gets_a_new_process(
    worker: KillableWorker, fault: str, expected: str
) -> None:
    pid = ask(worker, "")["pid"]
    error = failing(worker, fault)
    assert error.kind == "died"
    assert str(error).startswith(f"died: {expected}; log: ")
    assert ask(worker, "")["pid"] != pid


@pytest.mark.parametrize("fault", ["hang", "spin"])
def test_a_hung_process_is_killed_in_time_and_leaves_its_stack(
    worker: KillableWorker, tmp_path: Path, fault: str
) -> None:
    pid = ask(worker, "")["pid"]
    begun = time.monotonic()
    error = failing(worker, fault, timeout_s=1.0)
    assert time.monotonic() - begun < 1.0 + 5.0
    assert str(error).startswith("timeout: no answer within 1 s; its stack is in ")
    assert gone(int(str(pid)))
    log = next(tmp_path.glob("worker-*.log")).read_text()
    assert "toy_evaluator.py" in log
    assert " in act" in log
    assert ask(worker, "")["pid"] != pid


def test_a_memory_hog_is_killed_and_named(worker: KillableWorker) -> None:
    error = failing(worker, "memory")
    assert error.kind == "oom"
    assert "GiB, allowed are 0.3 GiB" in str(error)
    assert worker.pid is None


def test_descendants_die_too_even_those_that_left_the_group(worker: KillableWorker, tmp_path: Path) -> None:
    ask(worker, "")
    mark = f"grandchild-{tmp_path.name}"
    failing(worker, mark, timeout_s=1.0)
    time.sleep(0.2)
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]
    assert [pid for pid in left if not gone(pid)] == []


def test_cancelling_ends_the_call_at_once(tmp_path: Path) -> None:
    cancelled = threading.Event()
    worker = KillableWorker(EvaluatorReference(factory=f"{TOY}:build"), tmp_path, MEMORY_GB, cancelled.is_set)
    threading.Timer(0.5, cancelled.set).start()
    begun = time.monotonic()
    assert failing(worker, "hang", timeout_s=60).kind == "cancelled"
    assert time.monotonic() - begun < 3
    assert worker.pid is None


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (f"{TOY}:broken_factory", "ValueError: no such model file"),
        (f"{TOY}:exiting_factory", "exit: the code called sys.exit('bye')"),
        (f"{TOY}:no_function", "no_function: expected it to return a function, got int"),
        (f"{TOY}:missing", "has no 'missing'"),
        ("no.such.module:f", "ModuleNotFoundError: No module named 'no'"),
        ("/no/such/file.py:f", "ImportError: no such file /no/such/file.py"),
        ("nonsense", "expected 'package.module:function' or 'path/file.py:function', got 'nonsense'"),
    ],
)
def test_a_factory_that_fails_is_named_each_time(tmp_path: Path, factory: str, expected: str) -> None:
    worker = KillableWorker(EvaluatorReference(factory=factory), tmp_path, MEMORY_GB)
    for _ in range(2):
        assert expected in str(failing(worker, ""))
        assert worker.pid is None


PARENT = """
import sys, threading
from pathlib import Path
from autocompress.cluster.process import KillableWorker
from autocompress.records import EvaluatorReference
worker = KillableWorker(EvaluatorReference(factory=sys.argv[1]), Path(sys.argv[2]), 1.0)
print(worker.call({"do": ""}, 10)["pid"], flush=True)
worker.call({"do": sys.argv[3]}, 1000)
"""


@pytest.mark.parametrize("fault", ["hang", "spin"])
def test_the_process_dies_with_a_killed_parent(tmp_path: Path, fault: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, f"{TOY}:build", str(tmp_path), fault],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    group = [p for p in psutil.process_iter() if _group(p.pid) == pid]
    assert len(group) == 2  # the process and its guard
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(group, timeout=3)
    assert [p.pid for p in alive if not gone(p.pid)] == []


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return -1
