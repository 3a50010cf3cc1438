"""A space of one group: how many of 64 channels it keeps, in steps of 8, and whether it is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autocompress.errors import InfeasibleError
from autocompress.records import ChannelCut, LayerBits, ParamValue, Plan


class ToySpace:
    def __init__(self, refused: int | None = None, seeds: tuple[int, ...] = (64, 32, 16)) -> None:
        self.refused = refused
        self.keeps = seeds

    def suggest(self, trial: Any) -> dict[str, ParamValue]:
        return {"keep": trial.suggest_int("keep", 1, 64), "bits": trial.suggest_categorical("bits", [32, 8])}

    def plan(self, params: Mapping[str, ParamValue]) -> Plan:
        keep = int(params["keep"])
        if keep == self.refused:
            raise InfeasibleError(f"keep: {keep} is refused")
        cuts = (ChannelCut(group="g", keep=keep, criterion="magnitude"),) if keep < 64 else ()
        return Plan(cuts=cuts, bits=(LayerBits(layer="g", bits=8),) if params["bits"] == 8 else ())

    def seeds(self) -> list[tuple[str, dict[str, ParamValue]]]:
        return [("dense" if k == 64 else f"uniform-{k}", {"keep": k, "bits": 32}) for k in self.keeps]

    def size(self) -> float:
        return 2.1
