"""Random spaces over random networks, with every kind of choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from autocompress.errors import ConfigError
from autocompress.records import (
    Allocation,
    Block,
    Group,
    Layer,
    Structure,
    Use,
)
from autocompress.space.allocation import requests
from autocompress.space.config import SpaceConfig
from autocompress.space.grid import exact, keep_of
from autocompress.space.space import Space, resolve

BITS = (32, 16, 8, 7, 6, 5, 4, 3, 2)


def use(layer: str, axis: int, per_unit: int = 1) -> Use:
    return Use(parameter=f"{layer}.weight", axis=axis, per_unit=per_unit)


def residual(width: int, inner: Sequence[int], kernel: int, *, norms: bool, unit: int = 1) -> Structure:
    """A stem, residual blocks of two layers (the second on the stem's group), a depthwise layer and a classifier."""
    stem = ["stem", *(f"body.{i}.b" for i in range(len(inner)))]
    layers = [Layer(name="stem", kind="conv2d", shape=(width, 3, 3, 3), macs=9, group="stem")]
    groups, blocks = [], []
    for i, hidden in enumerate(inner):
        a, b = f"body.{i}.a", f"body.{i}.b"
        kind: Any = "linear" if kernel == 0 else "conv2d"
        tail = () if kernel == 0 else (kernel, kernel)
        layers.append(Layer(name=a, kind=kind, shape=(hidden * unit, width, *tail), macs=9, group=a))
        layers.append(Layer(name=b, kind=kind, shape=(width, hidden * unit, *tail), macs=9, group="stem"))
        places = (use(a, 0, unit), use(b, 1, unit))
        groups.append(
            Group(name=a, width=hidden, layers=(a,), consumers=(b,), unit=unit, uses=places, norms=("n",) * norms)
        )
        blocks.append(Block(name=f"body.{i}", layers=(a, b)))
    shared = [use(name, 0) for name in stem] + [use(f"body.{i}.a", 1) for i in range(len(inner))]
    groups.append(
        Group(name="stem", width=width, layers=tuple(stem), consumers=("head",), uses=(*shared, use("head", 1)))
    )
    layers.append(Layer(name="deep", kind="conv2d", shape=(8, 1, 3, 3), macs=9))
    layers.append(Layer(name="head", kind="linear", shape=(10, width), macs=9))
    inside = tuple(name for block in blocks for name in block.layers)
    return Structure(groups=tuple(groups), layers=tuple(layers), blocks=(*blocks, Block(name="body", layers=inside)))


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    return residual(
        draw(st.integers(1, 40)),
        draw(st.lists(st.integers(1, 24), min_size=1, max_size=3)),
        draw(st.sampled_from([0, 1, 3])),
        norms=draw(st.booleans()),
        unit=draw(st.sampled_from([1, 4])),
    )


def subset(values: Sequence[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, max_size=len(values), unique=True)


def shares(draw: st.DrawFn, *, whole: bool) -> dict[str, float]:
    steps = draw(st.sampled_from([4, 8, 10]))
    low = draw(st.integers(1 if whole else 0, steps - 1))
    return {
        "low": low / steps,
        "high": draw(st.integers(low, steps if whole else steps - 1)) / steps,
        "step": 1 / steps,
    }


SCHEDULES = ["one-shot", "gradual", {"kind": "gradual", "end": 0.9}, "iterative", "from-scratch", "lottery-ticket"]
PER = st.sampled_from(["layer", "group", "model"])


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    data: dict[str, Any] = {
        "groups": {
            "strategy": draw(subset(["structured", "unstructured", "none"])),
            "criterion": draw(subset(["magnitude", "taylor", "hessian", "random"])),
            "reduction": draw(subset(["mean", "sum", "max", "prod"])),
            "pattern": ["element", *draw(st.lists(st.sampled_from(["2:4", "1:2", "block:2x2"]), unique=True))],
            "sparsity": shares(draw, whole=False),
        },
        "layers": {
            "bits": {"choices": draw(subset(BITS)), "weights": draw(subset(["both", "only"])), "per": draw(PER)},
            "rank": shares(draw, whole=True) | {"per": draw(PER)},
            "codebook": {"clusters": draw(subset(["none", 2, 16, 256])), "per": draw(PER)},
        },
        "blocks": {"choices": ["keep", "drop"], "max": draw(st.integers(1, 4))},
        "schedule": draw(st.lists(st.sampled_from(SCHEDULES), min_size=1, max_size=4, unique_by=str)),
        "distillation": draw(subset(["none", "response", "features"])),
        "quantizer": ["post", {"training": "aware", "calibrator": "entropy"}, {"calibrator": "percentile"}],
        "order": draw(subset(["cut-mask", "mask-cut"])),
        "reconstruction": draw(subset(["least-squares", "none"])),
        "overrides": [{"match": "body.0", "block": draw(subset(["keep", "drop"]))}, {"match": "head", "bits": [32, 8]}],
    }
    if draw(st.booleans()):
        data["width"] = shares(draw, whole=True)
    elif draw(st.booleans()):
        data["groups"]["strategy"] = draw(subset(["unstructured", "none"]))
        data["allocation"] = {
            "scope": draw(subset(["uniform", "global", "isomorphic"])),
            "criterion": draw(subset(["magnitude", "taylor", "random"])),
            "reduction": draw(st.sampled_from(["mean", "sum", "max"])),
            "sparsity": shares(draw, whole=False),
        }
    for key in draw(
        st.sets(st.sampled_from(["blocks", "schedule", "distillation", "quantizer", "order", "reconstruction"]))
    ):
        del data[key]
    for key in draw(st.sets(st.sampled_from(["bits", "rank", "codebook"]))):
        del data["layers"][key]
    structure = draw(structures())
    round_to = draw(st.sampled_from([1, 4, 8]))
    return resolve_or_simpler(data, structure, round_to)


def resolve_or_simpler(data: dict[str, Any], structure: Structure, round_to: int) -> Space:
    try:
        return laid_over(data, structure, round_to)
    except ConfigError:  # a rank that is always whole, for example
        data["layers"].pop("rank", None)
        data["layers"]["bits"] = {"choices": [32, 8, 4]}
        return laid_over(data, structure, round_to)


def laid_over(data: dict[str, Any], structure: Structure, round_to: int) -> Space:
    config = SpaceConfig.model_validate(data)
    allocations = tables(config, structure, round_to=round_to, most=0.5)
    if config.allocation and not allocations:
        allocations = tables(config, structure, round_to=round_to)
    return resolve(config, structure, round_to=round_to, bits=BITS, allocations=allocations)


def tables(config: SpaceConfig, structure: Structure, *, round_to: int, most: float = 1.0) -> list[Allocation]:
    """Every group gives the share, a little more or less by its place and the kind; none above `most` by global."""
    found: list[Allocation] = []
    if config.allocation is None:
        return found
    for scope, criterion, sparsity in requests(config.allocation):
        tilt = (0.2 if scope == "global" else 0.1) * (1 if criterion == "magnitude" else -1)
        keeps = []
        for i, group in enumerate(structure.groups):
            share = min(max(1.0 - sparsity * (1 + (-1) ** i * tilt), 0.0), 1.0)
            keeps.append((group.name, keep_of(group.width, exact(share), group.multiple(round_to))))
        if scope != "global" or sparsity <= most:
            found.append(
                Allocation(
                    scope=scope,
                    criterion=criterion,
                    reduction=config.allocation.reduction,
                    sparsity=sparsity,
                    keeps=tuple(keeps),
                )
            )
    return found
