import pytest

from autocompress.pipeline.controls import control_plan
from autocompress.records import Architecture, ChannelCut, FromScratch, LayerBits, NoDistillation, Plan, WeightMask

PLAN = Plan(
    cuts=(ChannelCut(group="a", keep=8, criterion="taylor", reduction="max"),),
    masks=(WeightMask(layer="b", sparsity=0.5, criterion="lamp", pattern="2:4"),),
    bits=(LayerBits(layer="a", bits=8),),
)


@pytest.mark.parametrize("control", ["magnitude", "random"])
def test_a_control_keeps_widths_zeros_and_bits_and_chooses_otherwise(control):
    found = control_plan(PLAN, control)
    assert [(c.group, c.keep, c.criterion) for c in found.cuts] == [("a", 8, control)]
    assert [(m.layer, m.sparsity, m.pattern, m.criterion) for m in found.masks] == [("b", 0.5, "2:4", control)]
    assert found.bits == PLAN.bits


def test_from_scratch_draws_weights_anew_without_the_dense_model():
    found = control_plan(PLAN, "from-scratch")
    assert (found.schedule, found.distillation) == (FromScratch(), NoDistillation())
    assert (found.cuts, found.masks, found.bits) == (PLAN.cuts, PLAN.masks, PLAN.bits)


def test_there_is_no_control_where_it_would_be_the_plan_itself_or_nothing_was_chosen():
    same = Plan(cuts=(ChannelCut(group="a", keep=8, criterion="magnitude"),))
    assert control_plan(same, "magnitude") is None
    assert control_plan(same, "random") is not None
    assert control_plan(Plan(bits=PLAN.bits), "random") is None
    assert control_plan(Plan(), "from-scratch") is None


@pytest.mark.parametrize("control", ["magnitude", "random", "from-scratch"])
def test_a_network_that_is_built_is_its_own_control(control):
    assert control_plan(Plan(architecture=Architecture(width=0.5, bits=8)), control) is None
