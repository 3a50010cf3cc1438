"""The seam between measuring and a runtime: what a target and its loaded artifacts offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np


class Session(Protocol):
    """An artifact that is loaded and ready to run."""

    @property
    def threads(self) -> int:
        """Threads that share one inference."""

    def input_shape(self, batch_size: int) -> tuple[int, ...]:
        """Shape of an input with `batch_size` examples; MeasurementError if the artifact does not fix it."""

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs, shape (n, ...), for inputs of shape (n, ...); MeasurementError if any is NaN or infinite."""

    def runner(self, inputs: np.ndarray) -> Callable[[], object]:
        """One inference on `inputs` as a call without arguments: what stands between two readings of a clock."""


class Target(Protocol):
    """Where artifacts run.

    A target of your own is one object with these members, and a frozen pydantic config with a `kind` and `build()`.
    """

    @property
    def name(self) -> str:
        """Name in records and reports."""

    @property
    def round_to(self) -> int:
        """Channel counts are rounded to multiples of this."""

    @property
    def bits(self) -> tuple[int, ...]:
        """Bit widths that the runtime computes in."""

    @property
    def threads(self) -> int:
        """Threads that share one inference."""

    @property
    def batch_size(self) -> int:
        """Examples per inference when latency is taken."""

    @property
    def runtime(self) -> str:
        """The runtime's name and version, for the host's fingerprint."""

    def prepare(self, model: bytes) -> Session:
        """Load an artifact; MeasurementError, naming what is wrong, if it cannot be run."""
