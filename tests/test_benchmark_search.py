"""The indicators that `benchmarks/search` compares searchers by, on cases that can be checked by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autocompress.records import ChannelCut, LayerBits, NoDistillation, Plan

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "search"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's own modules, found as by its scripts."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import compare
    import outcome
    import recorder
    import runs

    class Found:
        pass

    found: Any = Found()
    found.compare, found.outcome, found.recorder, found.runs = compare, outcome, recorder, runs
    return found


def array(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, dtype=float).reshape(-1, 2)


def test_volume_is_the_dominated_share_of_the_box(modules):
    volume = modules.compare.volume
    assert volume(array()) == 0.0
    assert volume(array((0.5, 0.5))) == pytest.approx(0.25)
    # Two steps: 0.8 x 0.4 and, left of it, 0.4 x 0.4 more.
    assert volume(array((0.2, 0.6), (0.6, 0.2))) == pytest.approx(0.8 * 0.4 + 0.4 * 0.4)
    assert volume(array((1.2, 0.1))) == 0.0


def test_reference_is_what_nothing_dominates_inside_the_box(modules):
    found = modules.compare.reference([array((0.5, 0.5), (0.2, 0.9)), array((0.5, 0.4), (0.1, 1.5)), array((0.5, 0.4))])
    assert found.tolist() == [[0.2, 0.9], [0.5, 0.4]]
    assert len(modules.compare.reference([])) == 0


def test_time_to_is_the_first_moment_and_infinite_if_there_is_none(modules):
    time_to = modules.compare.time_to
    curve = {5.0: 0.9, 1.0: 0.3, 10.0: 0.8}
    assert time_to(curve, 0.3) == 1.0
    assert time_to(curve, 0.85) == 5.0
    assert math.isinf(time_to(curve, 0.95))


def test_time_to_is_not_known_behind_a_moment_that_is_not(modules):
    time_to = modules.compare.time_to
    curve = {1.0: 0.3, 2.0: None, 5.0: 0.9, 10.0: 0.8}
    assert time_to(curve, 0.3) == 1.0
    assert time_to(curve, 0.85) is None
    assert time_to(curve, 0.95) is None


def test_median_of_three_seeds_has_their_range_as_interval(modules):
    span = modules.compare.median([3.0, 1.0, 2.0])
    assert span == (2.0, 1.0, 3.0)
    assert modules.compare.median([1.0, 3.0]).value == 2.0


def test_median_keeps_what_was_not_reached_apart_from_numbers(modules):
    span = modules.compare.median([1.0, 2.0, math.inf])
    assert span.value == 2.0
    assert span.low == 1.0
    assert math.isinf(span.high)
    assert math.isinf(modules.compare.median([1.0, math.inf, math.inf]).value)
    with pytest.raises(ValueError, match=r"expected at least one, and no NaN, got \[\]"):
        modules.compare.median([])


def test_interval_of_the_median_covers_it_about_as_often_as_it_says(modules):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        span = modules.compare.median(rng.normal(size=15).tolist())
        covered += span.low <= 0.0 <= span.high
    assert 0.88 <= covered / 200 <= 1.0


def test_sooner_is_a_bound_where_someone_never_got_there(modules):
    sooner = modules.compare.sooner
    plain = sooner([1.0, 2.0, 1.0], [10.0, 10.0, 5.0], (20.0, 20.0))
    assert plain.span.value == 5.0
    assert plain.bound == ""
    assert sooner([1.0, 1.0], [math.inf, 10.0], (20.0, 20.0)).bound == ">"
    assert sooner([1.0, 1.0], [math.inf, math.inf], (5.0, 20.0)).span.value == 20.0
    assert sooner([math.inf], [10.0], (20.0, 20.0)).bound == "<"
    assert sooner([math.inf], [math.inf], (20.0, 20.0)).bound == "?"
    with pytest.raises(ValueError, match="expected as many times of both, at least one, got 1 and 2"):
        sooner([1.0], [1.0, 2.0], (20.0, 20.0))


def test_attainment_counts_runs_that_dominate(modules):
    sets = [array((0.1, 0.9), (0.5, 0.5)), array((0.3, 0.6)), array((0.4, 0.4))]
    half = modules.compare.attainment(sets, 50)
    # Dominated by at least two of the three: (0.3, 0.9), (0.4, 0.6), (0.5, 0.5).
    assert half.tolist() == [[0.3, 0.9], [0.4, 0.6], [0.5, 0.5]]


def test_attainment_counts_a_run_without_a_front(modules):
    sets = [array((0.2, 0.2)), array(), array()]
    assert len(modules.compare.attainment(sets, 50)) == 0
    assert modules.compare.attainment(sets, 25).tolist() == [[0.2, 0.2]]
    assert len(modules.compare.attainment([array()], 50)) == 0


def test_distances_are_zero_of_the_reference_itself(modules):
    best = array((0.2, 0.8), (0.8, 0.2))
    assert modules.compare.distances(best, best) == (0.0, 0.0)
    # One point that is 0.3 and 0.6 worse: the distance of each reference point to what it dominates.
    igd, epsilon = modules.compare.distances(array((0.5, 0.8)), best)
    assert igd == pytest.approx((0.3 + 0.6) / 2)
    assert epsilon == pytest.approx(0.6)
    assert modules.compare.distances(array(), best) == (math.inf, math.inf)


def test_latency_at_an_error(modules):
    points = array((0.1, 0.9), (0.3, 0.4), (0.5, 0.2))
    assert modules.compare.latency_at(points, 0.3) == 0.4
    assert math.isinf(modules.compare.latency_at(points, 0.05))


def step(modules, seconds, key, error, ratio, epochs=1.0):
    return modules.runs.Step(seconds=seconds, key=key, error=error, ratio=ratio, epochs=epochs)


def test_front_at_a_moment_knows_nothing_of_later(modules):
    steps = [step(modules, 10, "a", 0.5, 0.5), step(modules, 70, "b", 0.1, 0.1)]
    assert modules.runs.chosen(steps, 5) == ()
    assert modules.runs.chosen(steps, 60) == ("a",)
    assert modules.runs.chosen(steps, 70)[0] == "b"


def test_longest_training_of_a_candidate_counts(modules):
    # Judged again after more training, it is worse than b: so b is first.
    steps = [
        step(modules, 1, "a", 0.1, 0.4, 0.1),
        step(modules, 2, "a", 0.6, 0.5, 0.2),
        step(modules, 3, "b", 0.5, 0.4),
    ]
    assert modules.runs.chosen(steps, 10) == ("b", "a")


def test_front_has_eight_members_at_most(modules):
    steps = [step(modules, i, f"k{i}", i / 20, 1 - i / 20) for i in range(20)]
    assert len(modules.runs.chosen(steps, 100)) == modules.runs.MEMBERS == 8


def test_checkpoints_end_with_the_run(modules):
    assert modules.runs.checkpoints(2.0) == (0.5, 0.75, 1.0, 1.5, 2.0)
    assert modules.runs.checkpoints(4.0) == (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)


def test_plans_survive_the_record_whatever_is_left_out(modules):
    plan = Plan(
        cuts=(ChannelCut(group="a", keep=8, criterion="taylor"),),
        bits=(LayerBits(layer="a", bits=8),),
        distillation=NoDistillation(),
    )
    candidate = modules.runs.Candidate(plan=plan)
    text = candidate.model_dump_json(exclude_defaults=True)
    assert "weights_only" not in text
    assert modules.runs.Candidate.model_validate_json(text) == candidate
    assert candidate.key == plan.key
    assert modules.runs.Candidate(ratio=0.25, seed=1).key == "torch-pruning-0.25-1"
    with pytest.raises(ValueError, match="expected either a plan or a ratio, got both or neither"):
        modules.runs.Candidate()


def run_of(modules, arm, seed, fronts):
    return modules.runs.Run(
        work="resnet",
        arm=arm,
        seed=seed,
        minutes=2.0,
        dense_sha256="0",
        commit="",
        load=(0.0, 0.0),
        steps=(),
        fronts=fronts,
        candidates={},
    )


FINALS = {
    "dense": {"selection": 0.9, "ratio": 1.0},
    "a": {"selection": 0.9, "ratio": 0.5},
    "b": {"selection": 0.8, "ratio": 0.25},
    "c": {"failed": "no"},
}


def test_outcome_is_in_the_box_of_the_dense_network(modules):
    outcome = modules.outcome.Outcome([run_of(modules, "ours", 0, {"1": ("a", "c"), "2": ("a", "x")})], FINALS)
    # Errors 0.1 and 0.2, as shares of 0.1 + 0.10.
    assert outcome.points(["a", "b"]) == pytest.approx(array((0.5, 0.5), (1.0, 0.25)))
    assert outcome.points(["c"]).shape == (0, 2)
    curve = outcome.curve(outcome.runs[0])
    assert curve[1.0] == pytest.approx(0.25)
    assert curve[2.0] is None  # x is not judged


def test_outcome_ships_the_fastest_within_the_loss(modules):
    outcome = modules.outcome.Outcome([run_of(modules, "ours", 0, {"2": ("a", "b", "c")})], FINALS)
    assert outcome.shipped(outcome.runs[0], 0.01) == "a"
    assert outcome.shipped(outcome.runs[0], 0.10) == "b"
    assert outcome.shipped(run_of(modules, "ours", 1, {"2": ("c",)})) is None


def test_a_longer_recovery_counts_for_arms_of_which_all_is_judged_after_it(modules):
    runs = [run_of(modules, arm, 0, {"2": (key,)}) for arm, key in (("ours", "d"), ("random", "e"))]
    near = {"selection": 0.88, "ratio": 0.3}
    finals = {**FINALS, "d": near, "e": near, "d-longer": {**near, "selection": 0.895}}
    outcome = modules.outcome.Outcome(runs, finals)
    assert modules.outcome.border(outcome) == ["d", "e"]
    found = modules.outcome.after_longer(outcome)
    assert found.arms == ("ours",)
    assert found.shipped(found.runs[0]) == "d"
    assert outcome.shipped(outcome.runs[0]) is None
    # Dense is 0.9: b lost too much for a longer recovery, a lost nothing.
    others = [run_of(modules, "ours", 0, {"2": ("a", "b")})]
    assert modules.outcome.after_longer(modules.outcome.Outcome(others, FINALS)) is None


def test_outcome_pairs_seeds(modules):
    runs = [run_of(modules, arm, seed, {"2": ()}) for arm, seed in (("ours", 0), ("ours", 1), ("random", 1))]
    outcome = modules.outcome.Outcome(runs, FINALS)
    assert outcome.complete_seeds("ours", "random") == [1]


def test_tables_name_the_minutes_of_shorter_runs_and_compare_at_moments_that_both_have(modules):
    import tables

    fronts = {"1": ("b",), "2": ("a", "b")}
    long, short = run_of(modules, "ours", 0, fronts), run_of(modules, "random", 0, {"1": ("a",)})
    outcome = modules.outcome.Outcome([long, short.model_copy(update={"minutes": 1.0})], FINALS)
    curves = {(run.arm, run.seed): outcome.curve(run) for run in outcome.runs}
    rows = [line for line in tables.over_time(outcome, curves, 1.0) if line.startswith("| ")]
    assert [row.split(" | ")[-2:] for row in rows[1:]] == [
        ["0.000 [0.000, 0.000]", "0.250 [0.250, 0.250] |"],
        ["0.250 [0.250, 0.250]", "– |"],
    ]
    assert rows[2].startswith("| random, fine-tuning (1 min) |")
    assert tables.against(outcome, curves, 1.0)[-1].endswith("| – |")


def test_latency_is_the_median_of_sittings(modules, tmp_path):
    import finals
    import works
    from onnx import TensorProto, helper

    places, work = works.Places(tmp_path, tmp_path, tmp_path), works.WORKS["resnet"]
    files = finals.files_of(places, work)
    files.mkdir(parents=True)
    for name, nodes in (("dense", 6), ("a", 1)):
        names = [f"x{i}" for i in range(nodes + 1)]
        graph = helper.make_graph(
            [helper.make_node("MatMul", [a, a], [b]) for a, b in itertools.pairwise(names)],
            "graph",
            [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, ["n", 96, 96])],
            [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, ["n", 96, 96])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (files / f"{name}.onnx").write_bytes(model.SerializeToString())
    kept = finals.Kept(tmp_path / "finals.json")
    finals.read_latencies(work, places, kept, np.zeros((1, 96, 96), np.float32), ["dense", "a"])
    found = finals.Kept(tmp_path / "finals.json").values
    assert found["a"]["ratio_low"] <= found["a"]["ratio"] <= found["a"]["ratio_high"] < 0.7
    assert found["dense"]["ratio"] == pytest.approx(1.0, abs=0.3)
    assert set(found["a"]) == {"ratio", "ratio_low", "ratio_high", "noisy", "sittings"}


def test_wanted_begins_with_the_ends(modules):
    run = run_of(modules, "ours", 0, {"0.5": ("early",), "1": ("a",), "2": ("b", "a")})
    assert modules.outcome.wanted([run]) == ["dense", "eight", "b", "a", "early"]


def test_recorder_ends_a_trial_when_the_time_is_up(modules):
    recorder = modules.recorder.Recorder(0.002)
    with recorder.limited():
        while True:
            try:
                sum(range(1000))
            except Exception:  # noqa: BLE001 - a trial that takes everything for its own failure
                raise AssertionError("the end of time was taken for a failure") from None
    assert recorder.left_s <= 0.0


def test_kept_results_are_json(modules, tmp_path):
    run = run_of(modules, "ours", 3, {"2": ()})
    modules.runs.write_run(tmp_path, run)
    path = modules.runs.path_of(tmp_path, "resnet", "ours", 3)
    assert json.loads(path.read_text())["seed"] == 3
    assert modules.runs.read_runs(tmp_path, "resnet") == [run]
