from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from math import log
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import KINDS, sensitivity, space, space_of

from autocompress.config import Study
from autocompress.errors import ConfigError
from autocompress.pipeline.earlier import check_seeds, earlier_plans
from autocompress.pipeline.evaluate import Evaluator
from autocompress.pipeline.finalists import Finals
from autocompress.pipeline.folder import StudyFolder, read_record, write_record
from autocompress.pipeline.guide import PlanGuide, study_guide
from autocompress.pipeline.prepare import Workbench, prepare
from autocompress.pipeline.profile import Profile, profile
from autocompress.pipeline.run import StudyRun
from autocompress.pipeline.search import _seeds, search_candidates
from autocompress.pipeline.seed_items import items_of
from autocompress.pipeline.seeds import find_seeds, in_turns, knapsack, ordered, seed_points, spread
from autocompress.pipeline.trials import open_ledger, search_front
from autocompress.records import ChannelCut, Estimate, Fidelity, Finalist, LayerBits, Plan, SearchLog
from autocompress.search.ledger import Candidate, Ledger
from autocompress.search.samplers import Random
from autocompress.space.config import SpaceConfig, packaged_spaces
from autocompress.space.space import Space, resolve

TASK = f"{Path(__file__).resolve().parent / 'spied.py'}:spied"


def guide_of(found: Space, kind: str, **more: Any) -> PlanGuide:
    return PlanGuide(found, sensitivity(kind), dense_ms=2.0, **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", packaged_spaces())
def test_every_seed_is_of_the_space_and_the_dense_network_is_late(kind: str, name: str) -> None:
    found = space(kind, name)
    guide = guide_of(found, kind)
    solved = knapsack(items_of(guide), 12)
    seeds = ordered(found, guide, solved=solved)
    assert len(seeds.points) >= 2
    assert not seeds.left_out
    assert len({seed.plan for seed in seeds.points}) == len(seeds.points)
    for seed in seeds.points:
        assert found.plan(seed.params) == seed.plan
        assert seed.share == guide.latency_share(seed.plan)
    assert [seed.name for seed in seeds.points].index("dense") == min(8, len(seeds.points) - 1)
    by_budget = [seed for seed in seeds.points if seed.name.startswith("budget")]
    if name in ("unstructured", "sharing"):
        assert by_budget == []
        assert "no cut, block or bits" in seeds.notes[0]
    else:
        assert f"{len(solved.plans)} seeds by budget: least divergence from the dense model" in seeds.notes[0]
        # One may be the first seed already: fewer bits, and nothing else.
        repeated = [plan for _, plan in solved.plans if plan not in {seed.plan for seed in by_budget}]
        assert repeated in ([], [seeds.points[0].plan])
        assert "no latency model: multiply-adds in its place" in seeds.notes[0]
    rounds = [seed.plan.bits and not seed.plan.changes_weights for seed in seeds.points]
    assert rounds[0] or not any(rounds[1:])


SHARES = {"low": 0.25, "high": 0.75, "step": 0.25}
SMALL = {
    "groups": {"strategy": ["structured", "none"], "criterion": ["magnitude"], "sparsity": SHARES},
    "blocks": {"choices": ["keep", "drop"], "max": 1},
    "layers": {"bits": {"choices": [32, 8], "per": "model"}},
    "include": ["body.1.c1", "body.3.c1", "body.5.c1", "stem.0", "fc", "body.1", "body.3"],
}


def test_no_plan_as_fast_loses_much_less_than_a_seed() -> None:
    found = space_of("convolutional", SMALL)
    guide = guide_of(found, "convolutional")
    items = items_of(guide)
    assert len(items.items) >= 5
    everything = []
    for levels in itertools.product(*(range(len(item.levels)) for item in items.items)):
        state = {item.name: level for item, level in zip(items.items, levels, strict=True)}
        plan = items.plan(state)
        if len(plan.drops) <= 1:
            everything.append((guide.latency_share(plan), guide.losses.of(plan).total))
    solved = knapsack(items, 12).plans
    assert len(solved) >= 8
    for _, plan in solved:
        share, loss = guide.latency_share(plan), guide.losses.of(plan).total
        best = min(other for reached, other in everything if reached <= share * (1 + 1e-9))
        assert loss <= 1.1 * best + 0.002
    shares = [guide.latency_share(plan) for _, plan in solved]
    assert min(shares) == pytest.approx(min(share for share, _ in everything), rel=0.05)
    # Nothing slower than what loses nothing.
    assert max(shares) <= 1.02 * min(share for share, loss in everything if loss <= 0.002)


def test_what_lies_in_a_block_that_is_left_out_is_not_cut() -> None:
    found = space_of("convolutional", SMALL)
    items = items_of(guide_of(found, "convolutional"))
    by_name = {item.name: item for item in items.items}
    assert by_name["group/body.1.c1"].blocks == ("block/body.1",)
    assert by_name["group/stem.0"].blocks == ()
    allowed = [set(limit.choices) for limit in items.limits]
    cut = {("group/body.1.c1", level) for level in range(1, len(by_name["group/body.1.c1"].levels))}
    assert {("block/body.1", 1)} | cut in allowed
    for _, plan in knapsack(items, 12).plans:
        gone = {layer for drop in plan.drops for layer in found.structure.block(drop.block).layers}
        assert gone.isdisjoint(entry.group for entry in plan.cuts)


def test_costs_of_a_block_add_up_to_the_whole_change() -> None:
    found = space_of("convolutional", SMALL)
    items = items_of(guide_of(found, "convolutional"))
    state = items.dense | {"group/body.1.c1": 1, "bits": 1}
    costs = items.linear(state)
    moved = items.dense | {"block/body.1": 1, "bits": 1}
    change = sum(costs[name][level] for name, level in moved.items())
    assert items.share(state) + change == pytest.approx(items.share(moved))
    # And back.
    back = items.linear(moved)
    assert items.share(moved) + back["block/body.1"][0] == pytest.approx(items.share(moved | {"block/body.1": 0}))


class Steps:
    """A latency that falls in steps: sums around a solution are off."""

    def predict(self, plan: Plan) -> Estimate:
        gone = sum(48 - cut.keep for cut in plan.cuts)
        return Estimate.exact(2.0 * (0.4 if plan.bits else 1.0) / (1.0 + gone // 16) / (1.0 + len(plan.drops)))


def test_budgets_are_corrected_where_latencies_do_not_add_up() -> None:
    found = space_of("convolutional", SMALL)
    guide = guide_of(found, "convolutional", predictor=Steps())
    solved = knapsack(items_of(guide), 10)
    shares = [guide.latency_share(plan) for _, plan in solved.plans]
    assert len(set(shares)) >= 4
    assert all(name == f"budget-{share:.3f}" for (name, _), share in zip(solved.plans, shares, strict=True))
    assert solved.notes[0].endswith("latencies by the study's model")


def test_without_budgets_or_choices_nothing_is_solved() -> None:
    found = space("convolutional", "quantization")
    assert knapsack(items_of(guide_of(found, "convolutional")), 0).plans == ()
    assert len(knapsack(items_of(guide_of(found, "convolutional")), 1).plans) == 1

    class Same:
        def predict(self, plan: Plan) -> Estimate:
            return Estimate.exact(2.0)

    none = knapsack(items_of(guide_of(found, "convolutional", predictor=Same())), 4)
    assert none.plans == ()
    assert "no " in none.notes[0]


# --- order -----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(places=st.lists(st.floats(0.01, 100.0), max_size=20))
def test_spreading_keeps_every_point(places: list[float]) -> None:
    assert sorted(spread(places, lambda place: place)) == sorted(places)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(3, 60), low=st.floats(0.01, 0.5))
def test_every_beginning_is_spread_over_latency(count: int, low: float) -> None:
    places = [low ** (i / (count - 1)) for i in range(count)]
    order = spread(places, lambda place: place)
    step = -log(low) / (count - 1)
    for taken in range(1, count + 1):
        logs = sorted([log(low), *(log(place) for place in order[:taken]), 0.0])
        widest = max(b - a for a, b in itertools.pairwise(logs))
        # Of van der Corput's first n values no two neighbours are farther apart than 2 / n.
        assert widest <= -log(low) * 2.0 / taken + 2.0 * step


def test_kinds_of_seeds_take_turns() -> None:
    assert in_turns("abcde", "xy", 3) == ["a", "b", "c", "x", "d", "e", "y"]
    assert in_turns("", "xy", 3) == ["x", "y"]
    found = space("convolutional", "structured")
    guide = guide_of(found, "convolutional")
    names = [seed.name for seed in ordered(found, guide, solved=knapsack(items_of(guide), 16)).points]
    assert [name.partition("-")[0] for name in names[:9]] == ["budget", "budget", "budget", "uniform"] * 2 + ["dense"]


def test_a_persons_plans_come_first_and_other_spaces_plans_are_named() -> None:
    found = space("convolutional", "structured")
    guide = guide_of(found, "convolutional")
    group = found.structure.groups[0]
    own = Plan(cuts=(ChannelCut(group=group.name, keep=8, criterion="magnitude"),))
    odd = Plan(cuts=(ChannelCut(group=group.name, keep=7, criterion="magnitude"),))
    bits = Plan(bits=(LayerBits(layer=found.structure.layers[0].name, bits=8),))
    seeds = ordered(found, guide, own=[("mine", own)], earlier=[("odd", odd), ("bits", bits), ("again", own)])
    assert seeds.points[0].name == "mine"
    assert "again" not in [seed.name for seed in seeds.points]
    assert [name for name, _ in seeds.left_out] == ["odd", "bits"]
    assert "expected a multiple of 8" in seeds.left_out[0][1]
    without = ordered(found, guide, own=[("mine", own)], uniform=False)
    assert [seed.name for seed in without.points] == ["mine", "dense"]


# --- whole studies ---------------------------------------------------------------------------------------------------


def study_in(folder: Path, name: str = "first", **seeds: Any) -> Study:
    # Of a network this small the clock says that nothing is faster; multiply-adds do not.
    measure = {"latency_model": "off"}
    return Study(name=name, task=TASK, output=folder, search={"trials": 4, "seeds": seeds}, measure=measure)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: Any) -> Workbench:
    return prepare(study_in(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def found(bench: Workbench) -> Profile:
    return profile(bench)


def with_seeds(bench: Workbench, **seeds: Any) -> Workbench:
    study = study_in(bench.study.output, **seeds)
    return Workbench(study, bench.folder, bench.prepared)


@pytest.mark.slow
def test_a_study_begins_with_a_persons_plan_and_what_its_profile_suggests(
    bench: Workbench, found: Profile, tmp_path: Path
) -> None:
    group = bench.space.groups[0].name
    (tmp_path / "mine.yaml").write_text(f"cuts: [{{match: '{group}', keep: 8}}]\n")
    asked = with_seeds(bench, budgets=5, plans=[str(tmp_path / "mine.yaml")])
    points = seed_points(asked, found, study_guide(asked, found))
    assert points[0][0] == "plan-mine"
    assert {name.partition("-")[0] for name, _ in points} >= {"plan", "budget", "uniform", "dense"}
    assert all(bench.space.params(bench.space.plan(params)) for _, params in points)
    # Only what the space offers was measured: eight bits, and every group.
    assert {entry.bits for entry in found.sensitivity.layers} == {8}
    assert {entry.group for entry in found.sensitivity.groups} <= {choice.name for choice in bench.space.groups}


@pytest.mark.slow
def test_all_of_a_persons_plans_are_tried_however_few_the_trials(
    bench: Workbench, found: Profile, tmp_path: Path
) -> None:
    cut, bits = f"cuts: [{{match: '{bench.space.groups[0].name}', keep: 8}}]\n", "bits: [{match: '*', bits: 8}]\n"
    files = [tmp_path / f"{name}.yaml" for name in ("cut", "bits", "both")]
    for file, text in zip(files, (cut, bits, cut + bits), strict=True):
        file.write_text(text)

    def begun(trials: int, plans: Sequence[Path]) -> list[str]:
        asked = with_seeds(bench, budgets=5, plans=[str(file) for file in plans])
        search = asked.study.search.model_copy(update={"trials": trials})
        asked = Workbench(asked.study.model_copy(update={"search": search}), asked.folder, asked.prepared)
        return [name for name, _ in _seeds(asked, found, study_guide(asked, found), open_ledger(asked.study))]

    assert begun(3, files) == ["plan-cut", "plan-bits", "plan-both"]
    assert len(begun(10, files)) == 5
    assert len(begun(100, ())) <= 16


@pytest.mark.slow
def test_a_search_that_is_over_names_plans_without_room_and_closes_what_is_open(
    bench: Workbench, found: Profile, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(f"cuts: [{{match: '{bench.space.groups[0].name}', keep: 8}}]\n")
    study = study_in(bench.study.output, "over", plans=[str(tmp_path / "mine.yaml")])
    folder = StudyFolder(study.folder)
    folder.root.mkdir()
    ledger = open_ledger(study)
    ledger.use(Random().build(0))

    def over(**limits: Any) -> list[str]:
        limited = study.model_copy(update={"search": study.search.model_copy(update=limits)})
        asked = Workbench(limited, folder, bench.prepared)
        return [trial.state for trial in search_candidates(asked, found, lambda: pytest.fail("nothing is left to run"))]

    def begun() -> int:
        candidate = ledger.ask(bench.space)
        assert isinstance(candidate, Candidate)
        return candidate.number

    ledger.fail(begun(), "died: it did")
    assert over(trials=1) == ["failed"]
    told = read_record(folder.search_log, SearchLog)
    assert told is not None
    assert told.messages == (
        "search.seeds: expected room for all of plans and warm_start, got none left for plan-mine, which are not tried;"
        " raise search.trials",
    )
    write_record(folder.search_log, SearchLog(seconds={"search": 9.0}))
    running = begun()
    assert over(trials=10, time_s=5.0) == ["failed", "stopped"]
    assert open_ledger(study).record(running).reason == "time: the 5 s of the search were over"


@pytest.mark.slow
def test_an_earlier_studys_finalists_are_all_tried_without_its_ledger(bench: Workbench, found: Profile) -> None:
    earlier = study_in(bench.study.output, "earlier")
    folder = StudyFolder(earlier.folder)
    folder.root.mkdir()
    # Its ledger is in a database, whose address is not kept.
    kept = json.loads(earlier.model_dump_json())
    kept["search"]["storage"] = "**********"
    (folder.root / "study.json").write_text(json.dumps(kept))
    with pytest.raises(ConfigError, match=r"warm_start: expected a study that has ended, or whose ledger can be read"):
        check_seeds(study_in(bench.study.output, "second", warm_start="earlier"))

    plans = [bench.space.plan(bench.space.uniform(sparsity=s, bits=b)) for s in (0.25, 0.5, 0.75) for b in (8, 32)]
    measured = Evaluator(bench)(plans[0], Fidelity(epochs=0.0), "selection")
    finals = Finals(
        key="k",
        finalists=tuple(Finalist(number=n, plan=plan, search=None, final=measured) for n, plan in enumerate(plans)),
        baseline=bench.prepared.baseline,
        data_sha256={},
        code_sha256="c",
    )
    write_record(folder.finalists, finals)
    study = study_in(bench.study.output, "second", warm_start="earlier")
    check_seeds(study)
    study.folder.mkdir()
    asked, ledger = Workbench(study, bench.folder, bench.prepared), open_ledger(study)
    # Of four trials half are for seeds; but these were asked for.
    begun = _seeds(asked, found, study_guide(asked, found), ledger)
    assert [name for name, _ in begun if not name.startswith("warm-earlier-")] == []
    assert {bench.space.plan(params) for _, params in begun} == set(plans)
    # Also in a search that has proposed by itself before they were asked for; the others are not.
    ledger.use(Random().build(0))
    assert isinstance(ledger.ask(bench.space), Candidate)
    assert len(_seeds(asked, found, study_guide(asked, found), ledger)) == len(plans)
    assert _seeds(with_seeds(bench), found, study_guide(asked, found), ledger) == []


@pytest.mark.slow
def test_a_plan_outside_of_the_space_is_refused_with_its_file(bench: Workbench, found: Profile, tmp_path: Path) -> None:
    file = tmp_path / "four.yaml"
    file.write_text("bits: [{match: '*', bits: 4}]\n")
    asked = with_seeds(bench, plans=[str(file)])
    with pytest.raises(ConfigError, match=r"search\.seeds\.plans: .*four\.yaml: expected a plan that .* take the file"):
        find_seeds(asked, found, study_guide(asked, found))
    # So before anything is profiled.
    run = StudyRun(asked.study)
    with pytest.raises(ConfigError, match=r"four\.yaml: expected a plan that the study's space can express"):
        run.prepare()
    file.write_text("bits: [{match: '*', bytes: 4}]\n")
    with pytest.raises(ConfigError, match=r"four\.yaml:1: bits\[0\]\.bytes: "):
        check_seeds(asked.study)


def test_an_earlier_study_has_to_be_there_and_another_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"search\.seeds\.warm_start: expected the name of a study .* got 'gone'"):
        check_seeds(study_in(tmp_path, warm_start="gone"))
    study = study_in(tmp_path, warm_start="first")
    study.folder.mkdir()
    (study.folder / "study.json").write_text(study.model_dump_json())
    with pytest.raises(ConfigError, match="expected another study, got this one, 'first'"):
        check_seeds(study)
    check_seeds(study_in(tmp_path, "second", warm_start="first"))
    check_seeds(study_in(tmp_path, "second", warm_start=str(study.folder)))


@pytest.mark.slow
def test_an_earlier_studys_front_is_tried_again_as_far_as_the_space_has_it(bench: Workbench, found: Profile) -> None:
    earlier = bench.study
    with pytest.raises(ConfigError, match="expected a study with finished candidates, got 'first', which has none yet"):
        earlier_plans(study_in(earlier.output, "second"), "first")
    ledger = Ledger.open(bench.folder.journal, earlier.name, earlier.objectives, (), ())
    ledger.use(Random().build(0))
    evaluate = Evaluator(bench)
    ledger.enqueue([(f"seed-{bits}", bench.space.uniform(sparsity=0.5, bits=bits)) for bits in (8, 32)], 2)
    for _ in range(2):
        candidate = ledger.ask(bench.space)
        assert isinstance(candidate, Candidate)
        ledger.attempted(candidate.number, 1)
        measured = evaluate(candidate.plan, Fidelity(epochs=0.0), "validation")
        # A reading on a busy machine is marked, and would keep the candidate off the front.
        quiet = measured.model_copy(update={"latency": measured.latency.model_copy(update={"noisy": False})})
        ledger.tell(candidate.number, quiet.model_dump(mode="json"))
    front = search_front(ledger.trials(), earlier.objectives)
    plans = earlier_plans(study_in(earlier.output, "second"), "first")
    assert {plan for _, plan in plans} == {trial.plan for trial in front}
    assert plans == earlier_plans(study_in(earlier.output, "second"), str(earlier.folder))
    assert [name for name, _ in plans] == [f"warm-first-{plan.key[:8]}" for _, plan in plans]
    guide = study_guide(bench, found)
    assert {seed.plan for seed in ordered(bench.space, guide, earlier=plans, uniform=False).points} >= {
        plan for _, plan in plans
    }
    # In a space of floats alone the rest is named.
    floats = {"groups": {"strategy": ["structured", "none"], "criterion": ["magnitude"], "sparsity": SHARES}}
    narrow = resolve(SpaceConfig.model_validate(floats), bench.prepared.structure, round_to=8, bits=(32, 8))
    eight = [name for name, plan in plans if plan.bits]
    seeds = ordered(narrow, PlanGuide(narrow, found.sensitivity, dense_ms=1.0), earlier=plans)
    assert [name for name, _ in seeds.left_out] == eight
    assert all("plan.bits: expected a name that this space searches" in reason for _, reason in seeds.left_out)
