"""What every record rests on: frozen values, their content hash, and a measured value with its interval."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A frozen, strict value object."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


def digest(value: Any) -> str:
    """sha256, in hex, of the canonical JSON of a record or of plain JSON data.

    Examples:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    data = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Estimate(Record):
    """A measured value with its 95% interval, in the objective's own unit. Without one, low == high == value."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> Estimate:
        """A value that carries no noise, such as a size in bytes."""
        return cls(value=value, low=value, high=value)
