import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.inputs import apply, arrays, batch_size, call, concatenate, forward, named, output_of, stack

ONE = torch.arange(6.0).view(2, 3)
FORMS = {"tensor": ONE, "tuple": (ONE, ONE + 1), "dict": {"a": ONE, "b": ONE + 1}}


class Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": a if b is None else a + 10 * b, "rest": a}


@pytest.mark.parametrize("form", FORMS)
def test_a_network_is_called_with_the_form_that_it_takes_and_its_first_tensor_counts(form: str) -> None:
    inputs = FORMS[form]
    expected = ONE if form == "tensor" else ONE + 10 * (ONE + 1)
    assert torch.equal(forward(Sum(), inputs), expected)
    assert torch.equal(call(Sum(), inputs)["rest"], ONE)


def test_names_are_those_of_the_artifact() -> None:
    assert {form: list(named(inputs)) for form, inputs in FORMS.items()} == {
        "tensor": ["input"], "tuple": ["input_0", "input_1"], "dict": ["a", "b"],
    }  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_examples_become_batches_and_batches_one_in_the_same_form(form: str) -> None:
    inputs = FORMS[form]
    rows = [apply(lambda t, i=i: t[i], inputs) for i in range(2)]
    for whole in (stack(rows), concatenate([apply(lambda t, i=i: t[i : i + 1], inputs) for i in range(2)])):
        assert type(whole) is type(inputs)
        assert all(torch.equal(a, b) for a, b in zip(named(whole).values(), named(inputs).values(), strict=True))
    assert batch_size(inputs) == 2


def test_arrays_are_one_or_by_name() -> None:
    found = arrays(ONE.t())
    assert isinstance(found, np.ndarray)
    assert found.flags.c_contiguous
    assert {name: array.shape for name, array in arrays(FORMS["dict"]).items()} == {"a": (2, 3), "b": (2, 3)}


def test_what_is_no_tensor_or_of_unlike_sizes_is_refused() -> None:
    with pytest.raises(TaskError, match="expected a network that returns a tensor, or several, got str"):
        output_of("words")
    with pytest.raises(TaskError, match=r"the same number of examples, got \{'input_0': 2, 'input_1': 3\}"):
        batch_size((ONE, ONE.t()))
