from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autocompress.errors import ConfigError
from autocompress.records import (
    Block,
    BlockDrop,
    ChannelCut,
    Codebook,
    Gradual,
    Group,
    Layer,
    LayerBits,
    LotteryTicket,
    LowRank,
    Plan,
    Quantizer,
    Response,
    Structure,
    Use,
    WeightMask,
)
from autocompress.space.config import SpaceConfig
from autocompress.space.plan_file import dump_plan, load_plan
from autocompress.space.space import resolve


def use(layer: str, axis: int) -> Use:
    return Use(parameter=f"{layer}.weight", axis=axis, per_unit=1)


NETWORK = Structure(
    groups=(
        Group(name="c1", width=32, layers=("c1", "c3"), consumers=("c2", "fc"),
              uses=(use("c1", 0), use("c3", 0), use("c2", 1), use("fc", 1))),
        Group(name="c2", width=64, layers=("c2",), consumers=("c3",), norms=("n2",), uses=(use("c2", 0), use("c3", 1))),
    ),
    layers=(
        Layer(name="c1", kind="conv2d", shape=(32, 3, 3, 3), macs=9, group="c1"),
        Layer(name="c2", kind="conv2d", shape=(64, 32, 3, 3), macs=9, group="c2"),
        Layer(name="c3", kind="conv2d", shape=(32, 64, 1, 1), macs=9, group="c1"),
        Layer(name="d[0]", kind="conv2d", shape=(32, 1, 3, 3), macs=9),
        Layer(name="fc", kind="linear", shape=(100, 32), macs=9),
    ),
    blocks=(Block(name="body", layers=("c2", "c3")),),
)  # fmt: skip


def load(tmp_path: Path, text: str, **options: Any) -> Plan:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return load_plan(path, NETWORK, **options)


def test_everything_a_plan_can_say(tmp_path: Path) -> None:
    plan = load(
        tmp_path,
        """
cuts: [{match: "*", sparsity: 0.5, criterion: taylor}, {match: "c2", keep: 48, criterion: bn_scale}]
ranks: [{match: "*", share: 1}, {match: c3, ranks: [4]}]
masks: [{match: "c*", sparsity: 0.25}, {match: c2, pattern: "2:4", criterion: lamp}]
codebooks: [{match: c1, clusters: 16}]
bits: [{match: "*", bits: 8}, {match: "*", bits: 4, weights_only: true}]
schedule: {kind: gradual, end: 0.9}
distillation: {kind: response, temperature: 4}
quantizer: aware
order: mask-cut
reconstruction: none
""",
    )
    assert plan == Plan(
        cuts=(ChannelCut(group="c1", keep=16, criterion="taylor"),
              ChannelCut(group="c2", keep=48, criterion="bn_scale")),
        ranks=(LowRank(layer="c3", ranks=(4,)),),
        masks=(WeightMask(layer="c1", sparsity=108 / 432, criterion="magnitude"),
               WeightMask(layer="c2", sparsity=0.5, criterion="lamp", pattern="2:4")),
        codebooks=(Codebook(layer="c1", clusters=16),),
        bits=(LayerBits(layer="c2", bits=8), LayerBits(layer="c3", bits=8), LayerBits(layer="d[0]", bits=8),
              LayerBits(layer="fc", bits=4, weights_only=True)),
        schedule=Gradual(end=0.9),
        distillation=Response(temperature=4.0),
        quantizer=Quantizer(training="aware"),
        order="mask-cut",
        reconstruction="none",
    )  # fmt: skip


def test_block_that_is_left_out_takes_its_requests_along(tmp_path: Path) -> None:
    plan = load(
        tmp_path, "drops: [{match: bod*}]\ncuts: [{match: '*', keep: 8}]\nmasks: [{match: c2, pattern: '3:7'}]\n"
    )
    assert plan == Plan(drops=(BlockDrop(block="body"),), cuts=(ChannelCut(group="c1", keep=8, criterion="magnitude"),))


@pytest.mark.parametrize("text", [
    "{}\n",
    "cuts: [{match: '*', sparsity: 0.1}]\n",  # 28.8 and 57.6: nearest multiples of 32 are the whole
    "cuts: [{match: '*', sparsity: 0.5}, {match: '*', keep: 32}, {match: c2, sparsity: 0}]\n",
    "masks: [{match: c1, sparsity: 0.0005}]\n",
    "ranks: [{match: '*', share: 1}]\n",
    "ranks: [{match: fc, ranks: [30]}]\n",  # 30 * 132 > 3200
    "codebooks: [{match: '*', clusters: 16}, {match: '*', clusters: none}]\n",
    "codebooks: [{match: fc, clusters: 3200}]\n",
    "bits: [{match: '*', bits: 8}, {match: '*', bits: 32}]\n",
    "schedule: gradual\ndistillation: none\nquantizer: aware\norder: mask-cut\nreconstruction: none\n",
])  # fmt: skip
def test_request_that_changes_nothing_is_dense(tmp_path: Path, text: str) -> None:
    plan = load(tmp_path, text, round_to=32)
    assert plan.is_dense
    assert plan == Plan()


@pytest.mark.parametrize(("text", "message"), [
    ("cuts:\n  - {match: c1, sparsity: 1.0}\n",
     r"plan.yaml:2: cuts\[0\].sparsity: expected a finite number >= 0.0 and < 1.0 or null, got 1.0"),
    ("cuts:\n  - match: c9\n    sparsity: 0.5\n",
     r"plan.yaml:2: cuts\[0\].match: expected a pattern that matches a group of the network \(c1, c2\), got 'c9'"),
    ("masks: [{match: f, sparsity: 0.5}]\n", r"masks\[0\].match: .* \(c1, c2, c3, d\[0\], fc\), got 'f'"),
    ("drops: [{match: boddy}]\n", r"drops\[0\].match: .* a block .* got 'boddy' \(did you mean 'body'\?\)"),
    ("ranks: [{match: 'd*', share: 0.5}]\n", r"ranks\[0\].match: .* linear layer or ungrouped convolution"),
    ("ranks: [{match: fc}]\n", r"ranks\[0\]: expected either share, ranks or energy for 'fc', got none"),
    ("ranks: [{match: fc, energy: 0}]\n", r"ranks\[0\].energy: expected a finite number > 0.0 and <= 1.0"),
    ("ranks:\n- {match: fc, energy: 0.9}\n",
     r"plan.yaml:2: ranks\[0\].energy: expected share or ranks where no weights are at hand, got energy 0.9"),
    ("cuts: [{match: c1}]\n", r"cuts\[0\]: expected either sparsity or keep for 'c1', got none"),
    ("cuts: [{match: c1, keep: 8, sparsity: 0.1}]\n", r"either sparsity or keep for 'c1', got sparsity and keep"),
    ("cuts: [{match: c1, keep: 12}]\n",
     r"cuts\[0\].keep: expected a multiple of 8 below 32 for group 'c1' with 32 units, got 12"),
    ("cuts: [{match: c1, keep: 40}]\n", r"cuts\[0\].keep: .* got 40"),
    ("cuts: [{match: c1, keep: 8, criterion: lamp}]\n", r"cuts\[0\]: expected criteria that score .* got 'lamp'"),
    ("cuts: [{match: c1, keep: 8, criterion: bn_scale}]\n", r"cuts\[0\].criterion: group 'c1': .* got 'bn_scale'"),
    ("masks: [{match: fc, sparsity: 0.5, criterion: fpgm}]\n", r"masks\[0\]: expected criteria .* got 'fpgm'"),
    ("masks: [{match: fc, pattern: element}]\n", r"masks\[0\]: expected the key sparsity for pattern element"),
    ("masks: [{match: fc, pattern: '2:4', sparsity: 0.6}]\n", r"masks\[0\]: expected sparsity 0.5 or none for 2:4"),
    ("masks:\n- {match: fc, sparsity: 0.5}\n- {match: '*', pattern: '2:4'}\n",
     r"plan.yaml:3: masks\[1\].pattern: expected a pattern that divides 'c1' with weights of shape \[32, 3, 3, 3\]"),
    ("masks: [{match: fc, pattern: 'block:3x4', sparsity: 0.5}]\n", r"masks\[0\].pattern: .* \(whole blocks\)"),
    ("ranks: [{match: fc, ranks: [33]}]\n",
     r"ranks\[0\].ranks: expected one rank of at most \[32\] for 'fc' with weights of shape \[100, 32\], got \[33\]"),
    ("ranks: [{match: c2, ranks: [8]}]\n", r"ranks\[0\].ranks: expected two ranks, .* at most \[64, 32\] for 'c2'"),
    ("ranks: [{match: fc, ranks: [9]}]\ncuts: [{match: c1, keep: 8}]\n", r"at most \[8\] .*\[100, 8\], got \[9\]"),
    ("bits: [{match: fc, bits: 4}]\n", r"bits\[0\].bits: expected bits out of \[32, 8\], which the target has, got 4"),
    ("bits: [{match: fc, bits: 9}]\n", r"bits\[0\].bits: expected 32, 16, 8, 7, 6, 5, 4, 3 or 2, got 9"),
    ("bits: [{match: c1, bits: 8, weights_only: true}]\n", r"bits\[0\].match: .* a linear layer .* \(fc\), got 'c1'"),
    ("bits: [{match: fc, bits: 16, weights_only: true}]\n", r"expected 8 or 4 bits where only weights .*, got 16"),
    ("codebooks: [{match: fc, clusters: 1}]\n",
     r"codebooks\[0\].clusters: expected 'none' or an integer from 2 to 65536, got 1"),
    ("schedule: {kind: gradul}\n", r"plan.yaml:1: schedule.kind: expected .*'gradual'.* \(did you mean 'gradual'\?\)"),
    ("schedule: {kind: gradual, end: '0.5'}\n", r"schedule: expected a number for end, got '0.5'"),
    ("schedule: {kind: gradual, end: 0}\n", r"schedule.end: expected .* > 0.0 and <= 1.0, got 0"),
    ("schedule: {kind: gradual, ends: 0.5}\n", r"schedule.ends: .* \(did you mean 'end'\?\)"),
    ("distillation: {kind: response, alpha: true}\n", r"distillation: expected a number for alpha, got True"),
    ("quantizer: {training: awar}\n", r"quantizer.training: expected 'post' or 'aware' \(did you mean 'aware'\?\)"),
    ("orders: cut-mask\n", r"plan.yaml:1: orders: expected one of the keys .* \(did you mean 'order'\?\)"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text, round_to=8, bits=(32, 8))


def test_energy_becomes_the_ranks_that_hold_it(tmp_path: Path) -> None:
    asked: list[tuple[str, float]] = []

    def held(layer: str, energy: float) -> tuple[int, ...]:
        asked.append((layer, energy))
        return {"c1": (32, 3), "c2": (12, 30), "c3": (5,), "fc": (13,)}[layer]

    text = "ranks: [{match: '*', energy: 0.9}, {match: c1, share: 1}]\n"
    plan = load(tmp_path, text, energies=held)
    assert asked == [("c2", 0.9), ("c3", 0.9), ("fc", 0.9)]
    assert plan.ranks == (
        LowRank(layer="c2", ranks=(12, 30)), LowRank(layer="c3", ranks=(5,)), LowRank(layer="fc", ranks=(13,)),
    )  # fmt: skip
    # Rounded up to the target's multiple, and no more than what the cuts have left: 8 inputs, where 8 save nothing.
    plan = load(tmp_path, text + "cuts: [{match: c1, keep: 8}]\n", energies=held, round_to=8)
    assert plan.ranks == (LowRank(layer="c2", ranks=(16, 8)),)
    assert load(tmp_path, dump_plan(plan), round_to=8) == plan


def test_what_cannot_be_factorized_is_not_offered(tmp_path: Path) -> None:
    layers = tuple(x.model_copy(update={"factorizable": x.name != "fc"}) for x in NETWORK.layers)
    network = NETWORK.model_copy(update={"layers": layers})
    path = tmp_path / "plan.yaml"
    path.write_text("ranks: [{match: fc, share: 0.5}]\n")
    message = r"linear layer or ungrouped convolution with a weight of its own .* \(c1, c2, c3\), got 'fc'"
    with pytest.raises(ConfigError, match=message):
        load_plan(path, network)
    data = {"layers": {"rank": {"low": 0.25, "high": 1.0, "step": 0.25}}}
    space = resolve(SpaceConfig.model_validate(data), network, round_to=1, bits=(32,))
    assert space.ranks.keys() == {"rank/c1", "rank/c2", "rank/c3"}


def test_dumped_plan_is_one_line_per_entry() -> None:
    plan = Plan(
        cuts=(ChannelCut(group="c1", keep=16, criterion="taylor", reduction="max"),),
        bits=(LayerBits(layer="d[0]", bits=8),),
        schedule=LotteryTicket(rounds=5),
        masks=(WeightMask(layer="fc", sparsity=0.5, criterion="magnitude"),),
    )
    assert dump_plan(plan) == (
        'cuts:\n  - {match: "c1", keep: 16, criterion: "taylor", reduction: "max"}\n'
        'masks:\n  - {match: "fc", sparsity: 0.5, criterion: "magnitude"}\n'
        'bits:\n  - {match: "d[[]0]", bits: 8}\n'
        'schedule: {kind: "lottery-ticket", rounds: 5}\n'
    )
    assert dump_plan(Plan()) == "{}\n"


SPACE = resolve(
    SpaceConfig.model_validate({
        "width": {"low": 0.25, "high": 1.0, "step": 0.25},
        "groups": {
            "strategy": ["structured", "unstructured", "none"],
            "criterion": ["magnitude", "hessian"],
            "reduction": ["mean", "max"],
            "pattern": ["element", "2:4", "block:4x1"],
            "sparsity": {"low": 0.1, "high": 0.9, "step": 0.1},
        },
        "layers": {
            "bits": {"choices": [32, 16, 8, 4, 2], "weights": ["both", "only"]},
            "rank": {"low": 0.1, "high": 1.0, "step": 0.1},
            "codebook": {"clusters": ["none", 4, 256]},
        },
        "blocks": {},
        "schedule": ["one-shot", "lottery-ticket", {"kind": "sparse-training", "method": "set"}, "from-scratch"],
        "distillation": ["none", {"kind": "attention", "weight": 0.1}],
        "quantizer": ["post", {"training": "aware", "ranges": "calibrated", "calibrator": "entropy"}],
        "order": ["cut-mask", "mask-cut"],
        "reconstruction": ["none", "least-squares"],
    }),
    NETWORK, round_to=1, bits=(32, 16, 8, 4, 2),
)  # fmt: skip


class Drawn:
    """A suggester whose choices Hypothesis makes."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        assert step is not None
        return low + step * self.data.draw(st.integers(0, round((high - low) / step)), label=name)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        return self.data.draw(st.integers(low, high), label=name)

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return self.data.draw(st.sampled_from(choices), label=name)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_dumped_plan_loads_back(tmp_path: Path, data: st.DataObject) -> None:
    plan = SPACE.plan(SPACE.suggest(Drawn(data)))
    assert load(tmp_path, dump_plan(plan)) == plan
