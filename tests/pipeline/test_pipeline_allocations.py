from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.compress.allocate import allocate_cuts
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.config import Study
from autocompress.errors import ConfigError
from autocompress.pipeline.allocations import allocation_tables
from autocompress.pipeline.prepare import prepare
from autocompress.rng import derive_seed
from autocompress.space.config import SpaceConfig

TASK = f"{Path(__file__).resolve().parent / 'spied.py'}:spied"


def asking(scope, low, high, **more):
    allocation = {"scope": scope, "criterion": ["magnitude"], "sparsity": {"low": low, "high": high, "step": 0.25}}
    return {"allocation": allocation | more}


def test_preparation_computes_every_share_and_the_space_gives_their_widths(tmp_path):
    space = asking(["global", "isomorphic", "uniform"], 0.25, 0.75, criterion=["taylor", "magnitude"])
    task = {"factory": TASK, "arguments": {"trained": True}}
    study = Study(name="shares", task=task, output=tmp_path, space=space)
    bench = prepare(study)
    structure = bench.prepared.structure
    had = {(t.kind, t.sparsity): t for t in bench.prepared.allocations}
    # 16 and 32 channels in multiples of 8 can give 8 and 24 of 48: no ranking of both gives three quarters.
    criteria = ("taylor", "magnitude")
    assert set(had) == {
        *((f"{s}/{c}", share) for s in ("isomorphic", "uniform") for c in criteria for share in (0.25, 0.5, 0.75)),
        *((f"global/{c}", share) for c in criteria for share in (0.25, 0.5)),
    }  # fmt: skip
    lines = bench.space.describe().splitlines()
    assert "global/taylor left out at 0.75: the groups cannot give so much" in lines
    assert any(line.startswith("isomorphic/taylor reaches less than is asked for: ") for line in lines)
    for table in (table for table in had.values() if table.sparsity == 0.5):
        cuts = allocate_cuts(
            bench.dense,
            structure,
            bench.statistics,
            example=bench.task.example_input(),
            sparsity=table.sparsity,
            scope=table.scope,
            criterion=table.criterion,
            round_to=bench.target.round_to,
            seed=derive_seed(study.seed, "allocations"),
        )
        plan = bench.space.plan({"allocation": table.kind, "allocation/sparsity": table.sparsity})
        assert plan.cuts == cuts
    assert prepare(study).prepared == bench.prepared


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3)).eval()


def tables(net, space, round_to=8):
    example = torch.zeros(2, 4)
    structure = find_structure(net, example)
    config = SpaceConfig.model_validate(space)
    return allocation_tables(config, net, structure, Statistics({}), example=example, round_to=round_to, seed=0)


def test_excluded_groups_give_nothing(net):
    found = tables(net, asking(["global"], 0.5, 0.5) | {"exclude": ["0"]})
    assert [t.keeps for t in found] == [(("2", 16),)]
    assert tables(net, {"layers": {"bits": {"choices": [32, 8]}}}) == ()


def test_a_space_whose_shares_cannot_be_given_is_refused(net):
    with pytest.raises(ConfigError, match=r"allocation.sparsity: .* got none: .* at most 0\.6667, .* got 0\.75"):
        tables(net, asking(["global"], 0.75, 0.75))
    assert len(tables(net, asking(["isomorphic"], 0.75, 0.75))) == 1
