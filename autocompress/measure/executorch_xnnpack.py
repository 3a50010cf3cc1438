"""The target that runs artifacts with ExecuTorch and its XNNPACK kernels, as on a phone, on this machine's CPU.

The ONNX file is written in torch (`autocompress.measure.onnx_to_torch`), exported and lowered to XNNPACK when it is
loaded; what that has no kernel for runs in ExecuTorch's portable ones, which are slow.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar, Literal

import numpy as np

from autocompress.measure.loaded import BuiltTarget, Call, Feed, LoadedModel, Recent, Signature
from autocompress.measure.target import TargetSettings

#: Shape and element type of every input.
_Examples = tuple[tuple[tuple[int, ...], str], ...]


class ExecuTorchXnnpack(TargetSettings):
    """Settings of the target.

    Only floats have kernels of their own here: integers are restored to floats, as in `autocompress.measure.
    torch_targets`. A network is lowered for every batch size that it runs on, which takes seconds.
    """

    kind: Literal["executorch-xnnpack"] = "executorch-xnnpack"

    package: ClassVar[str] = "executorch"
    extra: ClassVar[str] = "executorch"

    def build(self) -> ExecuTorchXnnpackTarget:
        """The target.

        Raises:
            MeasurementError: ExecuTorch cannot be imported.
        """
        with _quiet():
            self.imported("executorch.backends.xnnpack.partition.xnnpack_partitioner")
            runtime = self.imported("executorch.runtime")
            library = self.imported("executorch.extension.pybindings.portable_lib")
        return ExecuTorchXnnpackTarget(self, runtime, library)


@dataclass(frozen=True)
class ExecuTorchXnnpackTarget(BuiltTarget[ExecuTorchXnnpack]):
    """ExecuTorch with XNNPACK on the CPU."""

    module: Any
    library: Any

    @property
    def runtime(self) -> str:
        """Such as ``"executorch 1.5.1 xnnpack"``."""
        return f"executorch {metadata.version('executorch')} xnnpack"

    def load(self, model: bytes) -> LoadedModel:
        """Load bytes that are not empty."""
        import torch

        from autocompress.measure.onnx_to_torch import to_torch

        signature = Signature.of_onnx(self.name, model)
        network = to_torch(model)

        def lowered(examples: _Examples) -> Any:
            inputs = tuple(torch.zeros(shape, dtype=getattr(torch, kind)) for shape, kind in examples)
            return self._lower(network, inputs)

        programs = Recent[_Examples, Any](lowered)

        def prepared(feed: Feed) -> list[int]:
            behind = [(shape[1:], kind) for shape, kind in _examples(feed)]
            return [known[0][0][0] for known in programs.keys if [(s[1:], kind) for s, kind in known] == behind]

        def bind(feed: Feed) -> Call:
            held = programs.get(_examples(feed))
            tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in feed.values()]
            if self.library._threadpool_get_thread_count() != self.threads:
                self.library._unsafe_reset_threadpool(self.threads)
            return lambda: held[-1].execute(tensors)[0].numpy()

        return LoadedModel(signature, self.threads, bind, prepared)

    def _lower(self, network: Any, inputs: tuple[Any, ...]) -> Any:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        with _quiet(), torch.no_grad():
            exported = torch.export.export(network, inputs)
            program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
        # A method reads memory of its program, and that of the bytes: all three live together.
        data = bytes(program.buffer)
        loaded = self.module.Runtime.get().load_program(data)
        return data, loaded, loaded.load_method("forward")


def _examples(feed: Feed) -> _Examples:
    return tuple((array.shape, str(array.dtype)) for array in feed.values())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what lowering tells about itself off the terminal; errors are raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
