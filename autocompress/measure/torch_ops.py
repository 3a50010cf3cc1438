"""ONNX's operators as plain functions of torch tensors, as far as exported networks use them.

Each takes an operator's inputs in ONNX's order, None for one that is left out, and its attributes by their names in the
file. What ONNX hands over as a tensor of integers, such as axes or a shape, has to be a constant or to come from the
size of another tensor (`Size`). `autocompress.measure.onnx_to_torch` traces them once, so that nothing of what is
decided here costs time in an inference.

References:
    The ONNX operators' specification, opsets 13 to 21, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

#: Element types by their number in a file.
DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


class UnsupportedError(Exception):
    """An operator is used in a way that has no counterpart here; the message says which."""


@dataclass(frozen=True)
class Size:
    """Sizes of axes, known only when the network runs: a vector of integers, or one of them."""

    values: tuple[Any, ...]
    scalar: bool = False


def leaf(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function be one node of a traced graph, so that it sees real tensors only."""

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        found: list[fx.Proxy] = []
        fx.node.map_aggregate(arguments, lambda value: found.append(value) if isinstance(value, fx.Proxy) else None)
        if found:
            return found[0].tracer.create_proxy("call_function", function, arguments, {})
        return function(*arguments)

    return call


def integers(value: Any, what: str) -> tuple[Any, ...]:
    """A constant tensor of integers, a `Size` or an attribute, as a tuple."""
    if isinstance(value, Size):
        return value.values
    if type(value) is Tensor:
        return tuple(int(x) for x in value.reshape(-1).tolist())
    if isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(value, int):
        return (value,)
    raise UnsupportedError(f"{what} that is computed by the network; expected a constant")


def number(value: Any, what: str) -> Any:
    """A constant tensor with one element as a Python number."""
    if value is None or isinstance(value, int | float):
        return value
    if type(value) is Tensor and value.numel() == 1:
        return value.item()
    raise UnsupportedError(f"{what} that is computed by the network; expected a constant")


def same_on_both_sides(pads: Sequence[int]) -> bool:
    """Every axis' begin equals its end."""
    half = len(pads) // 2
    return list(pads[:half]) == list(pads[half:])


def padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pads of all trailing axes, given as ONNX does: every axis' begin, then every axis' end."""
    half = len(pads) // 2
    flat = [side for axis in reversed(range(half)) for side in (pads[axis], pads[half + axis])]
    return functional.pad(x, flat, value=value)


# --- shapes -----------------------------------------------------------------------------------------------------------


def at(axis: int, index: Any) -> tuple[Any, ...]:
    """The key that indexes one axis, counted from either end."""
    whole = slice(None)
    return (*[whole] * axis, index) if axis >= 0 else (Ellipsis, index, *[whole] * (-axis - 1))


def reshape(x: Any, shape: Any, *, allowzero: int = 0) -> Any:
    """To a shape in which 0 stands for the size that the axis has, unless `allowzero`."""
    wanted = list(integers(shape, "a shape"))
    if isinstance(x, Size):
        return Size(x.values, scalar=not wanted)
    if not allowzero:
        wanted = [x.shape[i] if isinstance(size, int) and size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


def expand(x: Tensor, shape: Any) -> Tensor:
    """To the shape that both shapes broadcast to."""
    found: Tensor = _broadcast(x, integers(shape, "a shape"))
    return found


@leaf
def _broadcast(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.expand(torch.broadcast_shapes(x.shape, shape))  # type: ignore[no-untyped-call]


def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """To two axes, those before `axis` and the others."""
    if axis < 1:
        raise UnsupportedError(f"axis={axis}; expected 1 or more")
    front = x if axis == 1 else x.flatten(0, axis - 1)
    return front.flatten(1)


def slice_(x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    """Parts of axes."""
    first, last = integers(starts, "starts"), integers(ends, "ends")
    along = integers(axes, "axes") if axes is not None else tuple(range(len(first)))
    by = integers(steps, "steps") if steps is not None else (1,) * len(first)
    if any(isinstance(step, int) and step < 1 for step in by):
        raise UnsupportedError(f"steps={by}; expected steps above 0")
    for axis, start, end, step in zip(along, first, last, by, strict=True):
        part = slice(start, None if isinstance(end, int) and end >= 2**31 - 1 else end, step)
        x = Size(x.values[part]) if isinstance(x, Size) else x[at(int(axis), part)]
    return x


def gather(x: Any, indices: Any, *, axis: int = 0) -> Any:
    """Entries of an axis."""
    if isinstance(x, Size):
        chosen = integers(indices, "indices of a size")
        return Size(tuple(x.values[i] for i in chosen), scalar=indices.ndim == 0)
    if type(indices) is Tensor and indices.ndim == 0:
        return x[at(axis, int(indices))]
    return x[at(axis, indices)]


def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """One entry of an axis for every index."""
    return torch.gather(x, axis, indices)


def concat(*parts: Any, axis: int) -> Any:
    """Along an axis; of sizes, one vector."""
    if any(isinstance(part, Size) for part in parts):
        return Size(tuple(value for part in parts for value in integers(part, "a part of a size")))
    return torch.cat(parts, dim=axis)


def split(x: Tensor, sizes: Any = None, *, axis: int = 0, num_outputs: int | None = None) -> Any:
    """Consecutive parts of an axis: of the given sizes, or equal ones."""
    if sizes is not None:
        return torch.split(x, list(integers(sizes, "split")), dim=axis)
    if num_outputs is None:
        raise UnsupportedError("no sizes; expected split or num_outputs")
    return torch.chunk(x, num_outputs, dim=axis)


def squeeze(x: Any, axes: Any = None) -> Any:
    """Axes of size 1 left out."""
    if isinstance(x, Size):
        return Size(x.values, scalar=True)
    return x.squeeze() if axes is None else x.squeeze(integers(axes, "axes"))


def unsqueeze(x: Any, axes: Any) -> Any:
    """Axes of size 1 put in, at their places in the result."""
    if isinstance(x, Size):
        return Size(x.values)
    wanted = integers(axes, "axes")
    if len(wanted) > 1 and any(axis < 0 for axis in wanted):
        raise UnsupportedError(f"axes={list(wanted)}; expected several axes counted from the front")
    for axis in sorted(wanted):
        x = x.unsqueeze(axis)
    return x


def pad(x: Tensor, pads: Any, value: Any = None, axes: Any = None, *, mode: str = "constant") -> Tensor:
    """A constant put around; of the given axes, counted from the front or all."""
    around = integers(pads, "pads")
    if mode != "constant" or axes is not None:
        raise UnsupportedError(f"mode={mode} and axes; expected constant pads of every axis")
    return padded(x, around, number(value, "a value") or 0.0)


def cast(x: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    """To another element type."""
    if to not in DTYPES:
        raise UnsupportedError(f"element type {to}; expected one of {sorted(DTYPES)}")
    return x if isinstance(x, Size) else x.to(DTYPES[to])


def constant_of_shape(shape: Any, *, value: Tensor | None = None) -> Tensor:
    """One value in a shape of constant or free sizes."""
    fill = torch.zeros(()) if value is None else value.reshape(())
    found: Tensor = _broadcast(fill, integers(shape, "a shape"))
    return found


# --- reductions -------------------------------------------------------------------------------------------------------

Reduction = Callable[..., Any]


def reduction(name: str) -> Reduction:
    """An operator that reduces axes, given as an input or, in older files, as an attribute."""
    functions: dict[str, Reduction] = {
        "mean": torch.mean,
        "sum": torch.sum,
        "max": torch.amax,
        "min": torch.amin,
        "l2": torch.norm,
    }

    def reduce(x: Tensor, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0, **older: Any) -> Any:
        given = older.get("axes", axes)
        along = None if given is None else integers(given, "axes")
        if not along:
            if noop_with_empty_axes:
                return x
            raise UnsupportedError("no axes; expected the axes to reduce")
        return functions[name](x, dim=along, keepdim=bool(keepdims))

    return reduce
