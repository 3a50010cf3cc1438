"""The targets that run artifacts in PyTorch: on the CPU or an NVIDIA GPU, eagerly or compiled by inductor.

The ONNX file's operators are written in torch when it is loaded; see `autocompress.measure.onnx_to_torch`. Torch has
float kernels for these: integer weights become floats once, and pairs of QuantizeLinear and DequantizeLinear are
computed as they stand, exactly but without any gain.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.measure.loaded import BuiltTarget, Call, Feed, LoadedModel, Recent, Signature
from autocompress.measure.target import TargetSettings

if TYPE_CHECKING:
    from torch import fx

Compiler = Literal["eager", "inductor"]
Shapes = tuple[tuple[int, ...], ...]


class TorchCpu(TargetSettings):
    """Settings of PyTorch on the CPU.

    Attributes:
        compiler: ``eager`` runs operator by operator; ``inductor`` compiles the network for every batch size that it
            runs on, which takes a C++ compiler and, for a network of 20 layers, ten seconds each.
    """

    kind: Literal["torch-cpu"] = "torch-cpu"
    compiler: Compiler = "eager"

    package: ClassVar[str] = "torch"

    def build(self) -> TorchTarget:
        """The target.

        Raises:
            MeasurementError: torch cannot be imported, or there is no C++ compiler for inductor.
        """
        target = TorchTarget(self, self.imported("torch"), "cpu")
        if self.compiler == "inductor":
            _require_compiler(self.name)
        return target


class TorchCuda(TargetSettings):
    """Settings of PyTorch on an NVIDIA GPU.

    An inference goes from an array in the host's memory to one there, both copies included.

    Attributes:
        compiler: as of `TorchCpu`.
    """

    kind: Literal["torch-cuda"] = "torch-cuda"
    compiler: Compiler = "eager"

    package: ClassVar[str] = "torch"
    needs_gpu: ClassVar[bool] = True

    @property
    def install(self) -> str:
        """The command that installs a build of torch for CUDA."""
        return "pip install torch --index-url https://download.pytorch.org/whl/cu130"

    def build(self) -> TorchTarget:
        """The target.

        Raises:
            MeasurementError: torch cannot be imported, or finds no GPU.
        """
        torch = self.imported("torch")
        if not torch.cuda.is_available():
            raise MeasurementError(
                f"target {self.name!r}: expected an NVIDIA GPU that torch can use, got none (torch "
                f"{torch.__version__}, built for {torch.version.cuda or 'no CUDA'}); measure on a machine that has "
                f"one, with a build for CUDA: {self.install!r}"
            )
        return TorchTarget(self, torch, "cuda")


def _require_compiler(name: str) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        raise MeasurementError(
            f"target {name!r}: expected a C++ compiler for compiler: inductor, got none: {error}; install g++, or set "
            "compiler: eager"
        ) from error


@dataclass(frozen=True)
class TorchTarget(BuiltTarget[TorchCpu | TorchCuda]):
    """PyTorch on one device."""

    module: Any
    device: str

    @property
    def runtime(self) -> str:
        """Such as ``"torch 2.13.0 inductor"``."""
        return f"torch {self.module.__version__} {self.config.compiler}"

    def load(self, model: bytes) -> LoadedModel:
        """Load bytes that are not empty."""
        from autocompress.measure.onnx_to_torch import to_torch

        signature = Signature.of_onnx(self.name, model)
        network = to_torch(model).to(self.device)
        if self.config.compiler == "eager":
            return LoadedModel(signature, self.threads, lambda feed: self._call(network.forward, feed))
        programs = Recent[Shapes, Any](lambda _: self._compiled(network))

        def prepared(feed: Feed) -> list[int]:
            behind = [shape[1:] for shape in _shapes(feed)]
            return [known[0][0] for known in programs.keys if [shape[1:] for shape in known] == behind]

        return LoadedModel(
            signature, self.threads, lambda feed: self._call(programs.get(_shapes(feed)), feed), prepared
        )

    def _compiled(self, network: fx.GraphModule) -> Any:
        """The network as inductor will compile it for the first batch that comes.

        Compiled for a free batch it is slower; left to itself inductor compiles for the first size, then for a free
        one, and after eight it no longer compiles at all and says nothing. So each size has a module of its own.
        """
        from torch import fx

        copy = fx.GraphModule(network, network.graph).eval()
        return self.module.compile(copy, dynamic=False, options={"freezing": True})

    def _call(self, forward: Any, feed: Feed) -> Call:
        torch = self.module
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in feed.values()]

        def on_this_machine() -> object:
            with torch.inference_mode(), self._pinned():
                return forward(*tensors)[0].numpy()

        def on_device() -> object:
            with torch.inference_mode():
                # Copying the result waits for it.
                return forward(*[tensor.to(self.device) for tensor in tensors])[0].cpu().numpy()

        return on_this_machine if self.device == "cpu" else on_device

    @contextlib.contextmanager
    def _pinned(self) -> Iterator[None]:
        """This target's number of threads, which in torch is the whole process', for a while."""
        before = self.module.get_num_threads()
        if before != self.threads:
            self.module.set_num_threads(self.threads)
        try:
            yield
        finally:
            if before != self.threads:
                self.module.set_num_threads(before)


def _shapes(feed: Feed) -> Shapes:
    return tuple(array.shape for array in feed.values())
