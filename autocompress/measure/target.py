"""The seam between measuring and a runtime: what a target, its settings and its loaded artifacts offer.

Nothing heavy is imported here: a study file, which names a target, is checked without any runtime.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

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


class TargetSettings(BaseModel, ABC):
    """Settings of a target; `build` makes it. A target's own class adds a literal ``kind`` and what only it has.

    Attributes:
        threads: threads that share one inference.
        batch_size: examples per inference when latency is taken.
        node: Ray labels of the machine to measure on; empty is the machine that the study runs on.
        node_wait_s: seconds to wait for such a machine.
        round_to: channel counts that run fast here are multiples of this.
        bits: bit widths of weights that artifacts may be stored in, and run here.
        computes: those with kernels of their own; any other is storage only, computed in a wider one.
        weights_only_bits: of linear layers whose activations stay floats, where a kernel of its own reads the weights.
        patterns: N:M patterns of zeros, such as ``"2:4"``, that a kernel of its own makes use of.
        package: what `build` imports, as pip names it.
        extra: autocompress' extra that brings the package; empty if the core install has it.
        needs_gpu: it computes on an NVIDIA GPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: str
    threads: int = Field(default=1, ge=1)
    batch_size: int = Field(default=1, ge=1)
    node: dict[str, str] = {}
    node_wait_s: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)

    round_to: ClassVar[int] = 8
    bits: ClassVar[tuple[int, ...]] = (32, 16, 8, 7, 6, 5, 4, 3, 2)
    computes: ClassVar[tuple[int, ...]] = (32,)
    weights_only_bits: ClassVar[tuple[int, ...]] = ()
    patterns: ClassVar[tuple[str, ...]] = ()
    package: ClassVar[str]
    extra: ClassVar[str] = ""
    needs_gpu: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Name of the target in records and reports."""
        return self.kind

    @property
    def options(self) -> dict[str, str]:
        """The settings that only this kind has, as text."""
        own = type(self).model_fields.keys() - TargetSettings.model_fields.keys()
        return {name: str(getattr(self, name)) for name in sorted(own)}

    @property
    def install(self) -> str:
        """The command that installs what this target needs."""
        return f"pip install 'autocompress[{self.extra}]'" if self.extra else f"pip install {self.package}"

    @abstractmethod
    def build(self) -> Target:
        """The target.

        Raises:
            MeasurementError: what it needs is not here; the message says what to install or change.
        """

    def imported(self, module: str) -> Any:
        """A module of the target's runtime, imported only now.

        Raises:
            MeasurementError: it cannot be imported; the message says how to install it.
        """
        try:
            return importlib.import_module(module)
        except (ImportError, OSError) as error:
            raise MeasurementError(
                f"target {self.name!r}: expected the package {self.package}, which failed to import: {error}; "
                f"install it with {self.install!r}"
            ) from error
