"""Weights in half precision: fewer bytes in the file, floats in the runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import GraphProto, TensorProto, numpy_helper

from autocompress.compress.onnx_names import WEIGHT_INPUT, layer_of
from autocompress.errors import CompressionError


def store_half(graph: GraphProto, constants: Sequence[tuple[str, str]]) -> None:
    """Store constants as 16-bit floats, cast to 32 bits where they are read, in place.

    A runtime on the CPU casts once, when it loads the file, and computes with 32-bit floats.

    Args:
        graph: of a model.
        constants: (layer name, name of the constant that holds its weights).

    Raises:
        CompressionError: a weight is too large for half precision, whose largest number is 65504.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    stored: set[str] = set()
    for layer, name in constants:
        values = numpy_helper.to_array(tensors[name])
        top = float(np.abs(values).max(initial=0.0))
        if top > float(np.finfo(np.float16).max):
            raise CompressionError(f"plan.bits: layer {layer!r}: expected weights up to 65504 for 16 bits, got {top:g}")
        half, cast = f"{name}_half", f"{name}_single"
        if name not in stored:
            stored.add(name)
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), half))
            graph.node.insert(0, onnx.helper.make_node("Cast", [half], [cast], f"{name}/single", to=TensorProto.FLOAT))
        for reader in graph.node:
            # Layers with equal weights share a constant; another one keeps its floats.
            other = reader.op_type in WEIGHT_INPUT and layer_of(reader.name) != layer
            for at, read in enumerate(reader.input):
                if read == name and not other:
                    reader.input[at] = cast
