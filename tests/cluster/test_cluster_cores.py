"""Cores are divided as told, and processes really move."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from autocompress.cluster.cores import divide, move_here
from autocompress.errors import MeasurementError

HERE = os.sched_getaffinity(0)
two_cores = pytest.mark.skipif(len(HERE) < 2, reason="needs two cores")


def test_the_last_cores_measure_and_the_others_train() -> None:
    cores = divide(2, {0, 3, 5, 7})
    assert (cores.home, cores.measuring, cores.training) == ({0, 3, 5, 7}, {5, 7}, {0, 3})


@pytest.mark.parametrize(("threads", "allowed"), [(1, {4}), (2, {0, 1}), (3, {0, 1})])
def test_no_core_left_to_train_on_is_refused_with_what_to_do(threads: int, allowed: set[int]) -> None:
    with pytest.raises(MeasurementError, match=rf"beside the {threads} that measure .*, got {len(allowed)} in all"):
        divide(threads, allowed)


def test_a_system_without_affinity_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    with pytest.raises(MeasurementError, match="expected 'wait' on a system that cannot hold a process to cores"):
        divide(1)


@two_cores
def test_a_move_takes_all_threads_along_and_descendants_where_asked_and_back() -> None:
    stop, ids = threading.Event(), list[int]()
    thread = threading.Thread(target=lambda: (ids.append(threading.get_native_id()), stop.wait()))
    thread.start()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        one = {min(HERE)}
        move_here(one, descendants=False)
        assert [os.sched_getaffinity(i) for i in (0, ids[0], child.pid)] == [one, one, HERE]
        move_here(one, descendants=True)
        assert [os.sched_getaffinity(i) for i in (0, ids[0], child.pid)] == [one] * 3
        move_here(HERE, descendants=True)
        assert [os.sched_getaffinity(i) for i in (0, ids[0], child.pid)] == [HERE] * 3
    finally:
        move_here(HERE, descendants=True)
        stop.set()
        thread.join()
        child.kill()
        child.wait()
