"""What all targets share: how a network's inputs and output are checked, and how one inference becomes a call.

A runtime adds two things: how it loads bytes, and how it binds one batch to a call without arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.measure.target import TargetSettings, rows

if TYPE_CHECKING:
    # Lazy: it brings torch.
    from autocompress.inputs import Arrays

#: Element types that a network's input may have, as numpy calls them.
INPUT_TYPES = ("float32", "float64", "float16", "int64", "int32", "uint8", "int8", "bool")

Call = Callable[[], object]
Feed = dict[str, np.ndarray]
#: Makes of a checked batch one inference as a call, which returns the first output.
Bind = Callable[[Feed], Call]
Prepared = Callable[[Feed], Collection[int]]


@dataclass(frozen=True)
class Port:
    """An input or output.

    Attributes:
        type: as numpy calls it; of one that is not among `INPUT_TYPES`, as the runtime does.
        shape: an integer for a fixed size, anything else for a free one; None if nothing is known of it.
    """

    name: str
    type: str
    shape: tuple[object, ...] | None


@dataclass(frozen=True)
class Signature:
    """A network's inputs and its first output; the states that a recurrent network also returns are not looked at."""

    inputs: tuple[Port, ...]
    output: Port

    @classmethod
    def checked(cls, target: str, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> Signature:
        """A network that every batch size fits.

        Raises:
            MeasurementError: there is no input or no output, the batch axis of an input or of the first output is
                fixed, or an input is not made of numbers.
        """
        for what, ports in (("input", inputs), ("output", outputs)):
            if not ports:
                raise MeasurementError(f"{target}: expected a network with an {what}, got none")
        for port in inputs:
            _check_batch_axis(target, "input", port)
            if port.type not in INPUT_TYPES:
                raise MeasurementError(
                    f"{target}: input {port.name!r}: expected a type out of {sorted(INPUT_TYPES)}, got {port.type}"
                )
        _check_batch_axis(target, "output", outputs[0])
        return cls(inputs, outputs[0])

    @classmethod
    def of_onnx(cls, target: str, model: bytes) -> Signature:
        """As the file says; for runtimes that do not say themselves.

        Raises:
            MeasurementError: as `checked`, or the bytes are no ONNX file.
        """
        # Lazy: a study file is checked without it.
        import onnx

        try:
            graph = onnx.load_model_from_string(model).graph
        except Exception as error:
            raise MeasurementError(
                f"{target}: expected an ONNX model, got {len(model)} bytes that it refuses: {first_line(error)}"
            ) from error
        constants = {tensor.name for tensor in graph.initializer}
        inputs = tuple(_port(value) for value in graph.input if value.name not in constants)
        return cls.checked(target, inputs, tuple(_port(value) for value in graph.output))

    def feed(self, inputs: Arrays) -> Feed:
        """Arrays by input name, in the file's order.

        Raises:
            MeasurementError: names, types or shapes are not the network's.
        """
        names = [port.name for port in self.inputs]
        if isinstance(inputs, dict):
            feed = inputs
        else:
            if len(names) != 1:
                raise MeasurementError(f"expected arrays by the names {names}, got a single array")
            feed = {names[0]: inputs}
        if feed.keys() != set(names):
            raise MeasurementError(f"inputs: expected the names {names}, got {list(feed)}")
        for port in self.inputs:
            array, shape = feed[port.name], list(port.shape or ())
            if str(array.dtype) != port.type:
                raise MeasurementError(f"input {port.name!r}: expected {port.type}, got {array.dtype}")
            if array.ndim == 0 or array.shape[0] == 0:
                raise MeasurementError(f"input {port.name!r}: expected at least one example, got {array.shape}")
            if array.ndim != len(shape) or any(
                isinstance(want, int) and want != got for want, got in zip(shape, array.shape, strict=True)
            ):
                raise MeasurementError(f"input {port.name!r}: expected shape {shape}, got {list(array.shape)}")
        return {name: feed[name] for name in names}


def _check_batch_axis(target: str, what: str, port: Port) -> None:
    if what == "output" and not port.shape:
        return  # a scalar, or of unknown shape: `run` will see
    shape = list(port.shape or ())
    if not shape or isinstance(shape[0], int):
        axis = f"a fixed batch of {shape[0]}" if shape else "no axis at all"
        raise MeasurementError(
            f"{target}: {what} {port.name!r}: expected a free batch axis first, got {axis} in shape {shape}; "
            "export with a dynamic batch axis, and reshape with x.flatten(1) or x.view(x.shape[0], -1) instead of "
            "a fixed size"
        )


def _port(value: Any) -> Port:
    import onnx

    tensor = value.type.tensor_type
    try:
        kind = str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)))
    except (KeyError, TypeError):
        kind = "object"
    if kind == "object":
        kind = f"tensor({onnx.TensorProto.DataType.Name(tensor.elem_type).lower()})"
    if not tensor.HasField("shape"):
        return Port(value.name, kind, None)
    dims = tensor.shape.dim
    return Port(value.name, kind, tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in dims))


class LoadedModel:
    """An artifact in a runtime; satisfies `autocompress.measure.target.Session`."""

    def __init__(self, signature: Signature, threads: int, bind: Bind, prepared: Prepared | None = None) -> None:
        """A loaded artifact.

        Args:
            signature: its inputs and its first output.
            threads: that share one inference.
            bind: makes one inference of a batch.
            prepared: batch sizes that need no compiling any more, for a batch of this shape. `run` fills a smaller
                batch up to one of them; what is timed never is.
        """
        self.threads = threads
        self._signature, self._bind, self._prepared = signature, bind, prepared

    def input_shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        """Input name -> its shape with `batch_size` examples.

        Raises:
            MeasurementError: an axis beside the batch is free too.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for port in self._signature.inputs:
            rest = (port.shape or ())[1:]
            sizes = tuple(size for size in rest if isinstance(size, int))
            if len(sizes) != len(rest):
                raise MeasurementError(
                    f"input {port.name!r}: expected fixed sizes behind the batch axis, got {list(port.shape or ())}; "
                    "take the shape from an example instead"
                )
            shapes[port.name] = (batch_size, *sizes)
        return shapes

    def run(self, inputs: Arrays) -> np.ndarray:
        """The first output for a batch.

        Args:
            inputs: one array of shape (n, ...) for a network with one input, or arrays by the names of its inputs;
                each of the network's own element type.

        Returns:
            Shape (n, ...); finite.

        Raises:
            MeasurementError: names, types or shapes are not the network's, or an output is NaN or infinite.
        """
        count, feed = rows(inputs), self._signature.feed(inputs)
        larger = [size for size in self._prepared(feed) if size >= count] if self._prepared is not None else []
        if larger and count not in larger:
            feed = {name: _filled(array, min(larger)) for name, array in feed.items()}
        return self._checked(self._call(feed)(), rows(feed))[:count]

    def runner(self, inputs: Arrays) -> Call:
        """One inference on `inputs` as a call without arguments, with nothing around it that costs time.

        Raises:
            MeasurementError: as `run`, which is tried once.
        """
        count, call = rows(inputs), self._call(self._signature.feed(inputs))
        self._checked(call(), count)
        return call

    def _checked(self, result: object, count: int) -> np.ndarray:
        output = self._signature.output.name
        # A copy: a runtime may write its next output into the same memory.
        outputs = np.array(result)
        if outputs.ndim == 0 or outputs.shape[0] != count:
            raise MeasurementError(
                f"output {output!r}: expected {count} rows, one for each input, got shape {outputs.shape}"
            )
        finite = np.isfinite(outputs)
        if not finite.all():
            bad = np.flatnonzero(~finite.reshape(len(outputs), -1).all(axis=1))
            raise MeasurementError(
                f"output {output!r}: expected finite values, got {outputs[~finite].flat[0]} in {len(bad)} of "
                f"{len(outputs)} examples, the first at index {bad[0]}; the network diverged or its scales are wrong"
            )
        return outputs

    def _call(self, feed: Feed) -> Call:
        def refuse(error: Exception) -> MeasurementError:
            shapes = ", ".join(str(array.shape) for array in feed.values())
            return MeasurementError(f"the runtime failed on an input of shape {shapes}: {first_line(error)}")

        try:
            bound = self._bind(feed)
        except MeasurementError:
            raise
        except Exception as error:
            raise refuse(error) from error

        def call() -> object:
            try:
                return bound()
            except Exception as error:
                raise refuse(error) from error

        return call


def _filled(array: np.ndarray, count: int) -> np.ndarray:
    """Up to `count` rows, the first one again and again."""
    return np.concatenate([array, np.repeat(array[:1], count - len(array), axis=0)])


SettingsT = TypeVar("SettingsT", bound=TargetSettings)


@dataclass(frozen=True)
class BuiltTarget(ABC, Generic[SettingsT]):
    """A target made of its settings; satisfies `autocompress.measure.target.Target`. A runtime adds how it loads."""

    config: SettingsT

    @property
    def name(self) -> str:
        """Name of the target."""
        return self.config.name

    @property
    def round_to(self) -> int:
        """Multiple that channel counts are rounded to."""
        return self.config.round_to

    @property
    def bits(self) -> tuple[int, ...]:
        """Bit widths that artifacts may be stored in, and run."""
        return self.config.bits

    @property
    def computes(self) -> tuple[int, ...]:
        """Bit widths with kernels of their own."""
        return self.config.computes

    @property
    def threads(self) -> int:
        """Threads per inference."""
        return self.config.threads

    @property
    def batch_size(self) -> int:
        """Examples per inference when latency is taken."""
        return self.config.batch_size

    @property
    @abstractmethod
    def runtime(self) -> str:
        """The runtime's name and version."""

    @abstractmethod
    def load(self, model: bytes) -> LoadedModel:
        """Load bytes that are not empty; what it raises is told by `prepare`."""

    def prepare(self, model: bytes) -> LoadedModel:
        """Load an artifact.

        Args:
            model: the ONNX file's bytes.

        Raises:
            MeasurementError: the bytes are no model that the runtime can load, the network has no input or no
                output, or the batch axis of an input or of the first output is fixed.
        """
        if not isinstance(model, bytes) or not model:
            # A runtime would take a str for a path.
            got = "no bytes at all" if isinstance(model, bytes) else f"a {type(model).__name__}"
            raise MeasurementError(f"{self.name}: expected the bytes of an ONNX model, got {got}")
        try:
            return self.load(model)
        except MeasurementError:
            raise
        except Exception as error:
            raise MeasurementError(
                f"{self.name}: expected an ONNX model that {self.runtime} can load, got {len(model)} bytes "
                f"that it refuses: {first_line(error)}"
            ) from error


KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class Recent(Generic[KeyT, ValueT]):
    """The last few results of something slow, such as a network compiled for one shape."""

    def __init__(self, make: Callable[[KeyT], ValueT], most: int = 4) -> None:
        self._make, self._most = make, most
        self._kept: OrderedDict[KeyT, ValueT] = OrderedDict()

    @property
    def keys(self) -> tuple[KeyT, ...]:
        """What is kept, the latest last."""
        return tuple(self._kept)

    def get(self, key: KeyT) -> ValueT:
        """The kept result, or a new one."""
        if key not in self._kept:
            self._kept[key] = self._make(key)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def first_line(error: Exception) -> str:
    """What an error says, without its trace of calls or places in the runtime's source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from ", "Check '"))]
    return (said or lines or [type(error).__name__])[0]
