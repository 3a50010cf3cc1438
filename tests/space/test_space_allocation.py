"""One share for all groups: from tables to plans and back, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from autocompress.errors import ConfigError, InfeasibleError
from autocompress.records import Allocation, Block, ChannelCut, Group, Layer, Plan, Structure, Use, WeightMask
from autocompress.space.config import SpaceConfig, load_space
from autocompress.space.space import Space, resolve


def group(name: str, width: int, *coupled: str, norms: tuple[str, ...] = ()) -> Group:
    uses = tuple(Use(parameter=f"{layer}.weight", axis=0, per_unit=1) for layer in (name, *coupled))
    return Group(name=name, width=width, layers=(name, *coupled), norms=norms, uses=uses)


NETWORK = Structure(
    groups=(group("a", 16), group("b", 32), group("c", 16, "d", norms=("n",))),
    layers=tuple(
        Layer(name=name, kind="conv2d", shape=(width, 3, 3, 3), macs=9, group=name)
        for name, width in (("a", 16), ("b", 32), ("c", 16), ("d", 16))
    ),
    blocks=(Block(name="b", layers=("b",)),),
)
SPARSITY = {"low": 0.0, "high": 0.75, "step": 0.25}


def table(scope: Any, criterion: Any, sparsity: float, a: int, b: int, c: int, **more: Any) -> Allocation:
    keeps = (("a", a), ("b", b), ("c", c))
    return Allocation(scope=scope, criterion=criterion, sparsity=sparsity, keeps=keeps, **more)


TABLES = (
    table("global", "taylor", 0.0, 16, 32, 16),
    table("global", "taylor", 0.25, 16, 24, 8),
    table("global", "taylor", 0.5, 8, 16, 8),
    table("isomorphic", "taylor", 0.0, 16, 32, 16),
    table("isomorphic", "taylor", 0.25, 16, 24, 8),
    table("isomorphic", "taylor", 0.5, 8, 16, 8),
    table("isomorphic", "taylor", 0.75, 8, 16, 8),
)
ASKED = {"scope": ["global", "isomorphic"], "criterion": ["taylor"], "sparsity": SPARSITY}


def space_of(tables: tuple[Allocation, ...] = TABLES, asked: Any = ASKED, **data: Any) -> Space:
    config = SpaceConfig.model_validate({"allocation": asked, **data})
    return resolve(config, NETWORK, round_to=8, bits=(32, 8), allocations=tables)


def params(kind: str, share: float) -> dict[str, Any]:
    return {"allocation": kind, "allocation/sparsity": share}


def cut(name: str, keep: int, **more: Any) -> ChannelCut:
    return ChannelCut(group=name, keep=keep, criterion="taylor", **more)


def test_a_share_means_the_widths_of_its_table() -> None:
    space = space_of()
    plan = space.plan(params("global/taylor", 0.25))
    assert plan == Plan(cuts=(cut("b", 24), cut("c", 8)))
    assert space.plan(params("global/taylor", 0.0)).is_dense
    assert 10 ** space.size() == pytest.approx(len(TABLES))
    assert Allocation.model_validate_json(TABLES[1].model_dump_json()) == TABLES[1]


def test_equal_widths_are_one_plan_and_come_back_as_the_first_that_means_them() -> None:
    space = space_of()
    same = [("global/taylor", 0.5), ("isomorphic/taylor", 0.5), ("isomorphic/taylor", 0.75)]
    plans = {space.plan(params(*point)) for point in same}
    assert len(plans) == 1
    assert space.params(plans.pop()) == params("global/taylor", 0.5)
    assert space.params(Plan()) == params("global/taylor", 0.0)


def test_a_share_without_a_table_is_the_nearest_that_its_kind_has() -> None:
    space = space_of()
    assert space.plan(params("global/taylor", 0.75)) == space.plan(params("global/taylor", 0.5))
    assert space.plan(params("global/taylor", 0.3)) == space.plan(params("global/taylor", 0.25))
    assert space.plan(params("global/taylor", 0.375)) == space.plan(params("global/taylor", 0.25))


def test_reduction_matters_where_layers_are_coupled() -> None:
    tables = (table("global", "taylor", 0.25, 8, 24, 8, reduction="max"), table("global", "taylor", 0.5, 8, 24, 8))
    space = space_of(tables, ASKED | {"reduction": "max"}, layers={"bits": {"choices": [32, 8]}})
    plan = space.plan({"allocation/sparsity": 0.25, "bits/a": 32, "bits/b": 32, "bits/c": 32, "bits/d": 32})
    assert plan == Plan(cuts=(cut("a", 8), cut("b", 24), cut("c", 8, reduction="max")))


def test_groups_of_a_block_that_is_left_out_go_with_it() -> None:
    space = space_of(blocks={})
    point = {"block/b": "drop", **params("isomorphic/taylor", 0.25)}
    plan = space.plan(point)
    assert plan.cuts == (cut("c", 8),)
    # The tables of both kinds say the same of what is left.
    assert space.params(plan) == point | {"allocation": "global/taylor"}


def test_masks_fall_on_what_the_share_leaves() -> None:
    groups = {"strategy": ["unstructured", "none"], "sparsity": {"low": 0.5, "high": 0.5, "step": 0.1}}
    space = space_of(groups=groups, exclude=["d"], schedule=["one-shot", "iterative"], order=["cut-mask", "mask-cut"])
    point = params("global/taylor", 0.5) | {"strategy/a": "unstructured", "strategy/b": "none", "strategy/c": "none"}
    plan = space.plan(point | {"schedule": "iterative", "order": "mask-cut"})
    assert plan.masks == (WeightMask(layer="a", sparsity=0.5, criterion="magnitude"),)
    assert [c.group for c in plan.cuts] == ["a", "b", "c"]
    assert plan.order == "mask-cut"
    assert space.plan(space.params(plan)) == plan


def test_seeds_start_at_every_kind() -> None:
    space = space_of(layers={"bits": {"choices": [32, 8], "per": "model"}})
    seeds = dict(space.seeds())
    assert list(seeds)[:4] == ["dense", "uniform-0.00-8bit", "uniform-0.25-8bit", "uniform-0.50-8bit"]
    assert seeds["uniform-0.50-8bit"] == params("global/taylor", 0.5) | {"bits": 8}
    # Isomorphic at a half has the widths of global, so that it is no point of its own here.
    other = (*TABLES[:5], table("isomorphic", "taylor", 0.5, 8, 24, 8))
    seeds = dict(space_of(other, layers={"bits": {"choices": [32, 8], "per": "model"}}).seeds())
    assert seeds["allocation-isomorphic/taylor"] == params("isomorphic/taylor", 0.5) | {"bits": 32}


def test_describe_names_what_is_left_out_and_what_is_not_reached() -> None:
    lines = space_of().describe().splitlines()
    assert lines[1:] == [
        "3 groups by one share, 0 to 0.75, by global/taylor or isomorphic/taylor",
        "global/taylor left out at 0.75: the groups cannot give so much",
        "isomorphic/taylor reaches less than is asked for: 0.500 for 0.75",
    ]


@pytest.mark.parametrize(("text", "message"), [
    ("width: {low: 0.5, high: 1.0, step: 0.25}", "or width, got both; leave width out"),
    ("groups: {strategy: [structured], sparsity: {low: 0.5, high: 0.5, step: 0.1}}",
     "either allocation, which settles the width of every group, or groups.strategy, got both; take structured out of"),
    ("overrides: [{match: a, strategy: [structured, none]}]", r"or overrides\[0\].strategy, got both"),
])  # fmt: skip
def test_widths_are_settled_in_one_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(f"allocation: {{scope: [global], sparsity: {{low: 0.1, high: 0.5, step: 0.1}}}}\n{text}\n")
    with pytest.raises(ConfigError, match=message):
        load_space(str(path))


@pytest.mark.parametrize(("text", "message"), [
    ("allocation: {scope: [global]}", "space.yaml:1: allocation.sparsity: expected .* got nothing; the key is"),
    ("allocation: {scope: [], sparsity: {low: 0.1, high: 0.5, step: 0.1}}", "allocation.scope: expected a list of at"),
    ("allocation: {scope: [globl], sparsity: {low: 0.1, high: 0.5, step: 0.1}}",
     r"allocation.scope\[0\]: expected 'uniform', 'global' or 'isomorphic' \(did you mean 'global'\?\), got 'globl'"),
    ("allocation: {scope: [global], criterion: [lamp], sparsity: {low: 0.1, high: 0.5, step: 0.1}}",
     "allocation: expected criteria that score what structured pruning removes .* got 'lamp'"),
    ("allocation: {scope: [global], sparsity: {low: 0.1, high: 1.0, step: 0.1}}", "allocation.sparsity.high: .* < 1.0"),
])  # fmt: skip
def test_wrong_allocation_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        load_space(str(path))


def test_criterion_of_the_record_is_one_for_channels() -> None:
    with pytest.raises(ValidationError, match="expected a criterion for channels"):
        table("global", "lamp", 0.5, 8, 8, 8)


@pytest.mark.parametrize(("tables", "data", "message"), [
    ((), {}, r"allocation.sparsity: expected a share that the 3 groups can give, got none from 0 to 0.75"),
    (TABLES, {"exclude": ["a"]}, r"expected widths of the groups \['b', 'c'\], got global/taylor at 0"),
    (TABLES, {"asked": ASKED | {"criterion": ["bn_scale"]}}, "allocation: group 'a': expected criteria .* 'bn_scale'"),
    (TABLES, {"exclude": ["?"], "blocks": {}}, "allocation: expected a network with groups of channels that are"),
])  # fmt: skip
def test_space_that_does_not_fit_is_refused(tables: Any, data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space_of(tables, **data)


@pytest.mark.parametrize(("plan", "message"), [
    (Plan(cuts=(cut("a", 8),)), r"plan.cuts: expected the widths of one share by global/taylor, isomorphic/taylor, got "
                                r"{'a': 8}"),
    (Plan(masks=(WeightMask(layer="a", sparsity=0.5, criterion="magnitude"),)), "plan.masks: expected a name that"),
])  # fmt: skip
def test_plan_of_no_table_has_no_parameters(plan: Plan, message: str) -> None:
    with pytest.raises(InfeasibleError, match=message):
        space_of().params(plan)
