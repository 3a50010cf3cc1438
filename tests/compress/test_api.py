from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from autocompress.compress import compress, find_structure
from autocompress.compress.artifact import describe
from autocompress.compress.factorize import rank_for_energy
from autocompress.errors import ConfigError, TaskError
from autocompress.records import ChannelCut, LayerBits, Plan


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * 36, 3),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(96, 1, 6, 6, generator=generator), torch.arange(96) % 3)


def test_a_network_a_plan_and_data_give_a_file(net: nn.Module, data: TensorDataset) -> None:
    before = [p.clone() for p in net.parameters()]
    plan = Plan(cuts=(ChannelCut(group="0", keep=8, criterion="fpgm"),), bits=(LayerBits(layer="2", bits=8),))
    small = compress(net, plan, data, epochs=0.5)
    layers = {layer.name: layer for layer in describe(small.model).layers}
    assert layers["0"].shape == (8, 1, 3, 3)
    assert layers["2"].shape == (16, 8, 3, 3)
    assert layers["2"].bits == 8
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_plan_in_yaml_means_the_same(net: nn.Module, data: TensorDataset, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text('cuts: [{match: "0", sparsity: 0.5, criterion: fpgm}]\nbits: [{match: "2", bits: 8}]\n')
    plan = Plan(cuts=(ChannelCut(group="0", keep=8, criterion="fpgm"),), bits=(LayerBits(layer="2", bits=8),))
    assert compress(net, file, data, epochs=0.0).model == compress(net, plan, data, epochs=0.0).model


def test_a_rank_may_be_asked_for_by_the_energy_it_holds(net: nn.Module, data: TensorDataset, tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text('ranks: [{match: "2", energy: 0.6}]\n')
    small = compress(net, file, data, epochs=0.0)
    r_out, r_in = rank_for_energy(net, "2", 0.6)
    assert small.module.get_submodule("2.1").weight.shape == (r_out, r_in, 3, 3)  # type: ignore[union-attr]


def test_a_plan_that_names_nothing_is_refused_with_its_line(
    net: nn.Module, data: TensorDataset, tmp_path: Path
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text('cuts:\n  - {match: "head*", sparsity: 0.5}\n')
    with pytest.raises(ConfigError, match=r"plan.yaml:2: cuts.*match.*'head\*'"):
        compress(net, file, data)


def test_structure_may_be_given(net: nn.Module, data: TensorDataset) -> None:
    structure = find_structure(net, torch.randn(1, 1, 6, 6))
    given = compress(net, Plan(), data, structure=structure)
    assert given.model == compress(net, Plan(), data).model


def test_empty_data_are_refused(net: nn.Module) -> None:
    with pytest.raises(TaskError, match="a dataset with at least one example, got one without examples"):
        compress(net, Plan(), TensorDataset(torch.zeros(0, 1, 6, 6)))


def test_what_is_no_plan_is_refused_by_its_kind(net: nn.Module, data: TensorDataset) -> None:
    with pytest.raises(ConfigError, match="plan: expected a Plan or the path of one in YAML, got a dict"):
        compress(net, {"bits": []}, data)  # type: ignore[arg-type]
