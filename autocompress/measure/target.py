"""The seam between measuring and a runtime: what a target and its loaded artifacts offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from autocompress.errors import MeasurementError

if TYPE_CHECKING:
    # Lazy: it brings torch.
    from autocompress.inputs import Arrays


def rows(inputs: Arrays) -> int:
    """Number of examples in a batch.

    Raises:
        MeasurementError: there is no array, an array without axes, or arrays disagree in the number of examples.
    """
    shapes = {"input": inputs.shape} if isinstance(inputs, np.ndarray) else {k: v.shape for k, v in inputs.items()}
    counts = {shape[0] if shape else -1 for shape in shapes.values()}
    if len(counts) != 1 or -1 in counts:
        raise MeasurementError(f"inputs: expected arrays with the same number of examples, got shapes {shapes}")
    return int(counts.pop())


class Session(Protocol):
    """An artifact that is loaded and ready to run."""

    @property
    def threads(self) -> int:
        """Threads that share one inference."""

    def input_shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Input name -> its shape with `batch_size` examples; MeasurementError if the artifact does not fix it."""

    def run(self, inputs: Arrays) -> np.ndarray:
        """The first output, shape (n, ...), for n examples; MeasurementError if any of it is NaN or infinite.

        Args:
            inputs: one array of shape (n, ...), or several by the names of the artifact's inputs.
        """

    def runner(self, inputs: Arrays) -> Callable[[], object]:
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
        """Bit widths of weights that artifacts for this target may be stored in, and run."""

    @property
    def computes(self) -> tuple[int, ...]:
        """Those of `bits` that the runtime has kernels for; with any other, it computes in a wider one."""

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
