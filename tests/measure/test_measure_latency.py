from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from autocompress.errors import MeasurementError
from autocompress.measure import latency
from autocompress.measure.latency import Procedure, rate, throughput, together
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu, OnnxRuntimeCpuTarget
from autocompress.measure.target import Session
from autocompress.records import Estimate, LatencyReading

INPUTS = np.zeros((4, 3), dtype=np.float32)


def measure(candidates, baseline, inputs, *, seed, clock, procedure=Procedure(pin=False)):  # noqa: B008
    """As it is used, but that networks whose time is only a number need no core."""
    return latency.measure(candidates, baseline, inputs, seed=seed, clock=clock, procedure=procedure)


@dataclass
class World:
    """A clock that only inferences move; `slowdown(now in seconds)` multiplies each of them."""

    slowdown: Callable[[float], float] = lambda now: 1.0
    nanoseconds: int = 0
    order: list[str] = field(default_factory=list)

    def __call__(self) -> int:
        return self.nanoseconds

    def session(self, name: str, milliseconds: float, first_runs: float = 1.0) -> SyntheticSession:
        return SyntheticSession(self, name, milliseconds, first_runs)


@dataclass
class SyntheticSession:
    world: World
    name: str
    milliseconds: float
    first_runs: float
    threads: int = 2
    runs: int = 0
    collecting: list[bool] = field(default_factory=list)

    def input_shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return {"x": (batch_size, 3)}

    def run(self, inputs: np.ndarray) -> np.ndarray:
        self.step()
        return inputs

    def runner(self, inputs: np.ndarray) -> Callable[[], object]:
        return self.step

    def step(self) -> None:
        cold = self.first_runs if self.runs < 2 else 1.0
        self.runs += 1
        self.world.order.append(self.name)
        self.collecting.append(gc.isenabled())
        seconds = self.milliseconds * 1e-3 * cold * self.world.slowdown(self.world.nanoseconds * 1e-9)
        self.world.nanoseconds += round(seconds * 1e9)


def test_a_quiet_machine_gives_the_exact_latency() -> None:
    world = World()
    base, fast = world.session("base", 2.0), world.session("fast", 0.5)
    reading, itself = measure([fast, base], base, INPUTS, seed=0, clock=world)
    assert reading.ratio.value == pytest.approx(0.25)
    assert reading.latency_ms.value == pytest.approx(0.5)
    assert reading.baseline_ms == pytest.approx(2.0)
    assert (reading.p90_ms, reading.p99_ms) == pytest.approx((0.5, 0.5))
    assert (reading.batch_size, reading.threads, reading.rounds) == (4, 2, 20)
    assert math.isfinite(reading.load)
    assert not reading.noisy
    assert itself.ratio.value == pytest.approx(1.0)


@given(st.floats(0.1, 3.0), st.floats(-0.12, 0.12), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_known_ratio_is_recovered_while_the_machine_drifts(milliseconds: float, change: float, seed: int) -> None:
    world = World(slowdown=lambda now: 1.0 + change * min(now, 1.0))
    base, net = world.session("base", 1.0), world.session("net", milliseconds)
    (reading,) = measure([net], base, INPUTS, seed=seed, clock=world)
    assert reading.ratio.value == pytest.approx(milliseconds, rel=0.01)
    assert not reading.noisy


@given(st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_tenfold_outliers_do_not_move_the_ratio(seed: int) -> None:
    rng = np.random.default_rng(seed)
    world = World(slowdown=lambda now: 10.0 if rng.random() < 0.1 else 1.0)
    base, net = world.session("base", 1.0), world.session("net", 0.7)
    (reading,) = measure([net], base, INPUTS, seed=seed, clock=world)
    assert reading.ratio.value == pytest.approx(0.7, rel=1e-3)
    assert reading.p99_ms > 5.0


@given(st.floats(0.005, 0.2), st.floats(1.2, 4.0), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_a_burner_that_comes_and_goes_keeps_the_order_or_marks_the_reading(
    period: float, factor: float, seed: int
) -> None:
    world = World(slowdown=lambda now: factor if int(now / period) % 2 else 1.0)
    base = world.session("base", 1.0)
    slower, faster = world.session("slower", 0.8), world.session("faster", 0.6)
    a, b = measure([slower, faster], base, INPUTS, seed=seed, clock=world)
    assert a.noisy or b.noisy or a.ratio.value > b.ratio.value


def test_a_baseline_that_keeps_drifting_is_repeated_then_marked() -> None:
    world = World(slowdown=lambda now: 1.0 + 3.0 * now)
    base, net = world.session("base", 1.0), world.session("net", 0.5)
    (reading,) = measure([net], base, INPUTS, seed=0, clock=world)
    assert reading.noisy
    assert world.order.count("net") > 3 * 20 * 5  # three attempts of 20 blocks
    assert reading.ratio.value == pytest.approx(0.5, rel=0.1)


def test_a_drift_that_ends_is_measured_again_and_not_marked() -> None:
    world = World(slowdown=lambda now: 1.0 + min(now, 0.25) * 2.0)
    base, net = world.session("base", 1.0), world.session("net", 0.5)
    (reading,) = measure([net], base, INPUTS, seed=0, clock=world)
    assert not reading.noisy
    assert reading.baseline_ms == pytest.approx(1.5)
    assert reading.latency_ms.value == pytest.approx(0.75)


def test_dispersed_ratios_are_marked_noisy_and_only_they_are_repeated() -> None:
    world = World()
    base, calm, wild = world.session("base", 1.0), world.session("calm", 0.5), world.session("wild", 0.5)
    step = wild.step

    def jump() -> None:
        wild.milliseconds = 0.5 if world.nanoseconds // 40_000_000 % 2 else 1.5
        step()

    wild.step = jump  # type: ignore[method-assign]
    calm_reading, wild_reading = measure([calm, wild], base, INPUTS, seed=0, clock=world)
    assert wild_reading.noisy
    assert not calm_reading.noisy
    assert world.order.count("wild") > 1.5 * world.order.count("calm")


def test_every_round_runs_every_network_in_a_shuffled_order() -> None:
    world = World()
    names = ["base", "a", "b", "c"]
    sessions = [world.session(name, 1.0) for name in names]
    measure(sessions[1:], sessions[0], INPUTS, seed=0, clock=world)
    blocks = [world.order[i] for i in range(len(world.order) - 20 * 4 * 5, len(world.order), 5)]
    rounds = [tuple(blocks[i : i + 4]) for i in range(0, len(blocks), 4)]
    assert len(rounds) == 20
    assert all(sorted(order) == sorted(names) for order in rounds)
    assert len(set(rounds)) > 5


def test_warm_up_keeps_cold_runs_out_of_the_reading() -> None:
    world = World()
    base, net = world.session("base", 1.0, first_runs=40.0), world.session("net", 0.5, first_runs=40.0)
    (reading,) = measure([net], base, INPUTS, seed=0, clock=world)
    assert reading.p99_ms == pytest.approx(0.5)


def test_garbage_collection_is_off_while_measuring_and_on_again_after() -> None:
    world = World()
    base = world.session("base", 1.0)
    measure([base], base, INPUTS, seed=0, clock=world)
    assert not any(base.collecting[-100:])
    assert gc.isenabled()


def test_garbage_collection_is_on_again_after_a_failure() -> None:
    world = World()
    base = world.session("base", 1.0)

    def fail_late() -> None:
        SyntheticSession.step(base)
        if base.runs > 50:
            raise MeasurementError("the runtime failed")

    base.step = fail_late  # type: ignore[method-assign]
    with pytest.raises(MeasurementError, match="the runtime failed"):
        measure([base], base, INPUTS, seed=0, clock=world)
    assert gc.isenabled()


def test_a_clock_that_stands_still_is_refused() -> None:
    base = World().session("base", 1.0)
    with pytest.raises(MeasurementError, match=r"expected an inference to take some time, the clock says 0\.0 s"):
        measure([base], base, INPUTS, seed=0, clock=lambda: 0)


def test_without_candidates_there_are_no_readings() -> None:
    world = World()
    assert measure([], world.session("base", 1.0), INPUTS, seed=0, clock=world) == []


@pytest.mark.parametrize(("networks", "limit_s"), [(1, 2.0), (10, 15.0)])
def test_time_is_bounded_even_when_every_reading_is_repeated(networks: int, limit_s: float) -> None:
    rng = np.random.default_rng(0)
    world = World(slowdown=lambda now: float(rng.lognormal(0.0, 1.0)))  # nothing ever agrees
    sessions = [world.session(str(i), 1.0) for i in range(networks)]
    readings = measure(sessions, world.session("base", 1.5), INPUTS, seed=0, clock=world)
    assert world.nanoseconds * 1e-9 < limit_s
    assert len(readings) == networks


def test_a_procedure_with_too_few_rounds_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 10"):
        Procedure(rounds=9)


def test_sittings_together_are_their_median_and_the_whole_of_their_intervals() -> None:
    def reading(ratio: float, noisy: bool = False, baseline_ms: float = 2.0) -> LatencyReading:
        near = Estimate(value=ratio, low=ratio - 0.01, high=ratio + 0.02)
        return LatencyReading(
            latency_ms=near, ratio=near, baseline_ms=baseline_ms, p90_ms=1.0, p99_ms=1.0, rounds=20, batch_size=1,
            threads=1, load=ratio, noisy=noisy, attempts=1 + noisy, cores=(0,),
        )  # fmt: skip

    found = together([reading(0.34, noisy=True), reading(0.27), reading(0.31, baseline_ms=3.0)])
    assert (found.ratio.value, found.ratio.low, found.ratio.high) == pytest.approx((0.31, 0.26, 0.36))
    assert found.latency_ms == found.ratio
    assert (found.rounds, found.noisy, found.attempts, found.load, found.baseline_ms) == (60, False, 2, 0.34, 2.0)
    assert together([reading(0.3, noisy=True), reading(0.3), reading(0.3, noisy=True)]).noisy
    assert together([reading(0.3)]) == reading(0.3)


def test_throughput_is_batch_size_over_latency_beside_the_baselines() -> None:
    world = World()

    @dataclass
    class Grows(SyntheticSession):
        """Takes a fixed time, and more for each example."""

        per_example: float = 0.0

        def runner(self, inputs: np.ndarray) -> Callable[[], object]:
            fixed, rows = self.milliseconds, len(inputs)

            def call() -> None:
                world.nanoseconds += round(1e6 * (fixed + rows * self.per_example))

            return call

    base = Grows(world, "base", 1.0, 1.0, per_example=0.5)
    net = Grows(world, "net", 0.5, 1.0, per_example=0.25)
    batches = [np.zeros((n, 3), dtype=np.float32) for n in (1, 8)]
    (found,) = throughput([net], base, batches, seed=0, procedure=Procedure(pin=False), clock=world)
    assert [rate.batch_size for rate in found] == [1, 8]
    assert [rate.examples_per_s.value for rate in found] == pytest.approx([1 / 0.75e-3, 8 / 2.5e-3])
    assert [rate.baseline_per_s for rate in found] == pytest.approx([1 / 1.5e-3, 8 / 5e-3])
    assert not any(rate.noisy for rate in found)


def test_throughput_of_no_batch_measures_nothing() -> None:
    world = World()
    base = world.session("base", 1.0)
    assert throughput([base, base], base, [], seed=0, clock=world) == [(), ()]
    assert world.order == []


def test_a_rates_interval_is_that_of_the_ratio_turned_over() -> None:
    reading = LatencyReading(
        latency_ms=Estimate(value=1.0, low=0.8, high=1.25),
        ratio=Estimate(value=0.5, low=0.4, high=0.625),
        baseline_ms=3.0,
        p90_ms=1.0,
        p99_ms=1.0,
        rounds=20,
        batch_size=8,
        threads=1,
        load=0.0,
        noisy=True,
    )
    found = rate(reading, 2.0)  # the one baseline of a table, not the reading's own
    assert found.baseline_per_s == pytest.approx(4000.0)
    per_s = found.examples_per_s
    assert (per_s.low, per_s.value, per_s.high) == pytest.approx((6400.0, 8000.0, 10000.0))
    assert found.noisy


@pytest.mark.parametrize(("repeats", "attempts"), [(0, 1), (2, 3)])
def test_attempts_are_counted_and_dispersion_and_drift_are_kept(repeats: int, attempts: int) -> None:
    world = World(slowdown=lambda now: 1.0 + 3.0 * now)
    base, net = world.session("base", 1.0), world.session("net", 0.5)
    (reading,) = measure(
        [net], base, INPUTS, seed=0, clock=world, procedure=Procedure(pin=False, repeats=repeats, drift=0.05)
    )
    assert (reading.attempts, reading.noisy) == (attempts, True)
    assert reading.drift > 0.05
    assert 0.0 <= reading.dispersion < 0.5


def test_threads_that_compute_are_held_meanwhile_and_free_again_after() -> None:
    before = os.sched_getaffinity(0)
    seen: list[set[int]] = []

    class Looks(Spin):
        def runner(self, inputs: np.ndarray) -> Callable[[], object]:
            run = super().runner(inputs)

            def call() -> None:
                seen.append(os.sched_getaffinity(0))
                run()

            return call

    (reading,) = latency.measure([Looks(8000)], Looks(8000), INPUTS, seed=0)
    assert os.sched_getaffinity(0) == before
    if len(before) > 1:
        assert len(reading.cores) == 1
        assert seen[-1] == set(reading.cores)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 3, reason="two threads need a choice of three cores")
def test_a_runtimes_own_threads_are_held_too() -> None:
    target = OnnxRuntimeCpu(threads=2).build()
    session = target.prepare(perceptron(512, 4))
    (reading,) = latency.measure([session], session, np.zeros((64, 512), dtype=np.float32), seed=0)
    assert len(reading.cores) == 2


def perceptron(width: int, layers: int) -> bytes:
    rng = np.random.default_rng(0)
    weights = {f"w{i}": (rng.standard_normal((width, width)) / width**0.5).astype(np.float32) for i in range(layers)}
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(layers)]
    ends = [helper.make_tensor_value_info(f"h{i}", TensorProto.FLOAT, ["n", width]) for i in (0, layers)]
    arrays = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], arrays)
    proto: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return proto.SerializeToString()


def of_about_a_millisecond(target: OnnxRuntimeCpuTarget, inputs: np.ndarray) -> list[Session]:
    """Ten real networks, deep enough to take about a millisecond each."""
    probe = target.prepare(perceptron(256, 8)).runner(inputs)
    probe()
    start = time.perf_counter()
    for _ in range(50):
        probe()
    each = (time.perf_counter() - start) / 50 / 8
    depth = max(2, round(1e-3 / each))
    return [target.prepare(perceptron(256, depth + i)) for i in range(10)]


def test_ten_real_networks_of_a_millisecond_are_read_within_fifteen_seconds() -> None:
    target = OnnxRuntimeCpu().build()
    inputs = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    sessions = of_about_a_millisecond(target, inputs)
    start = time.perf_counter()
    readings = latency.measure(sessions, sessions[0], inputs, seed=0)
    assert time.perf_counter() - start < 15.0
    assert len(readings) == 10
    assert 0.3 < float(np.median([reading.latency_ms.value for reading in readings])) < 3.0


@dataclass
class Spin:
    """A network of real work: so many multiplications."""

    size: int
    threads: int = 1

    def input_shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return {"x": (batch_size, 3)}

    def run(self, inputs: np.ndarray) -> np.ndarray:
        return inputs

    def runner(self, inputs: np.ndarray) -> Callable[[], object]:
        return lambda: sum(i * i for i in range(self.size))


@contextmanager
def burning(code: str, count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


#: Works and rests in turns.
TURNS = """
import time
while True:
    end = time.time() + 0.05
    while time.time() < end:
        pass
    time.sleep(0.05)
"""


def test_a_real_burner_process_keeps_the_order_or_marks_the_reading() -> None:
    with burning(TURNS, 1):
        start = time.perf_counter()
        slow, fast = latency.measure([Spin(16000), Spin(8000)], Spin(20000), INPUTS, seed=0)
        seconds = time.perf_counter() - start
    assert slow.noisy or fast.noisy or slow.ratio.value > fast.ratio.value
    assert seconds < 10.0


def test_burners_on_every_core_make_a_reading_repeat_and_mark_it() -> None:
    # An inference longer than the system's time slices, so that no median of a block can hide what is shared.
    with burning(TURNS, 2 * len(os.sched_getaffinity(0))):
        procedure = Procedure(rounds=10)
        readings = latency.measure([Spin(160000), Spin(80000)], Spin(200000), INPUTS, seed=0, procedure=procedure)
    assert any(reading.noisy for reading in readings)
    for reading in readings:
        assert reading.noisy == (reading.dispersion > 0.1 or reading.drift > 0.1)
        assert reading.attempts == 3 or not reading.noisy
