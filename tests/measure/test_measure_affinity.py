from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from autocompress.measure.affinity import computing, held, quietest, thread_times

CORES = os.cpu_count() or 1
several = pytest.mark.skipif(CORES < 2, reason="one core leaves no choice")


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def test_threads_that_computed_are_told_from_those_that_slept() -> None:
    ids: dict[str, int] = {}
    go, stop = threading.Event(), threading.Event()

    def work() -> None:
        ids["worker"] = threading.get_native_id()
        go.wait()
        spin(0.2)
        stop.wait()

    def sleep() -> None:
        ids["sleeper"] = threading.get_native_id()
        stop.wait()

    threads = [threading.Thread(target=work), threading.Thread(target=sleep)]
    for thread in threads:
        thread.start()
    before = thread_times()
    go.set()
    time.sleep(0.25)
    after = thread_times()
    stop.set()
    for thread in threads:
        thread.join()
    found = computing(before, after)
    assert ids["worker"] in found
    assert ids["sleeper"] not in found
    assert threading.get_native_id() in found


def test_where_the_system_tells_no_times_the_caller_alone_computes() -> None:
    assert computing({}, {}) == {threading.get_native_id()}


@several
def test_threads_are_held_and_let_go_where_they_were() -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    with held({threading.get_native_id()}, (core,)) as cores:
        assert cores == (core,)
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before


@several
def test_threads_are_let_go_after_a_failure() -> None:
    before = os.sched_getaffinity(0)
    with pytest.raises(RuntimeError, match="the runtime failed"), held({threading.get_native_id()}, (max(before),)):
        raise RuntimeError("the runtime failed")
    assert os.sched_getaffinity(0) == before


def test_what_the_system_refuses_is_not_claimed() -> None:
    before = os.sched_getaffinity(0)
    with held({threading.get_native_id()}, (100_000,)) as cores:
        assert cores == ()
    assert os.sched_getaffinity(0) == before


def test_a_thread_that_has_ended_is_passed_over() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with held({threading.get_native_id(), gone.pid}, os.sched_getaffinity(0)) as cores:
        assert cores == tuple(sorted(os.sched_getaffinity(0)))


@several
def test_the_quietest_core_is_not_the_one_that_works() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    for busy in (allowed[0], allowed[-1]):
        burner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        os.sched_setaffinity(burner.pid, {busy})
        try:
            time.sleep(0.2)
            for _ in range(3):
                before = psutil.cpu_times(percpu=True)
                (found,) = quietest(1)
                after = psutil.cpu_times(percpu=True)
                idle = [b.idle + b.iowait - a.idle - a.iowait for a, b in zip(before, after, strict=True)]
                # Others may work on this machine meanwhile; by a tick and a tenth, none was idler than the one found.
                assert idle[found] >= max(idle[core] for core in allowed) - 0.03
                assert found != busy or max(idle[core] for core in allowed) <= 0.03
        finally:
            burner.kill()
            burner.wait()


@several
def test_nothing_is_chosen_where_there_is_no_choice() -> None:
    before = os.sched_getaffinity(0)
    assert quietest(CORES) == ()
    os.sched_setaffinity(0, {max(before)})
    try:
        assert quietest(1) == (max(before),)
    finally:
        os.sched_setaffinity(0, before)
