"""The packed form of a model: the smallest file from which exactly its ONNX bytes come back.

The large initializers are cut out of the ONNX file as they stand and coded by what they are (see `coding`); the graph
that is left is compressed as text. Nothing is parsed and written anew, so the bytes that come back are the bytes that
went in, and a sha256 in the header proves it. Everything that is needed is inside, codebooks included.

Layout, version 1: ``b"ACP"``, the version, sha256 of the model (32 bytes), crc32 of the rest (4 bytes, little-endian);
then, as numbers in 7-bit groups, the model's size, the length of the graph's code and the number of tensors; per tensor
the graph bytes before it, its size, the bytes of one number, the numbers in a row and the length of its code; then the
codes, the graph's first; then zeros, if the file would be smaller than 1/4096 of the model.

References:
    Han, Mao and Dally, 2016, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and
    Huffman Coding".
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from autocompress.compress.coding import coding_of, decode, encode, read_number, write_number
from autocompress.errors import CompressionError

_MAGIC = b"ACP"
_VERSION = 1
_HEAD = len(_MAGIC) + 1 + 32 + 4
#: A model is at most so many times as large as its packed file, beyond the first MiB: a damaged or hostile file cannot
#: make the loader fill the memory.
_RATIO, _FREE = 4096, 1 << 20
#: What ONNX files, being protocol buffers, may have.
_LIMIT = (1 << 31) - 1
#: Smaller initializers stay in the graph.
_SMALL = 32
#: ONNX data type -> bytes of one stored number; other types stay in the graph.
_ITEMSIZE = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2, 21: 1, 22: 1}
_PACKED_PER_BYTE = {21: 2, 22: 2}  # uint4, int4


@dataclass(frozen=True)
class PackedPart:
    """Where bytes of a packed file go.

    Attributes:
        name: of the initializer; ``"(graph)"`` for all else of the model, ``"(header)"`` for checksums and table.
        coding: how it is written, such as ``"mask-rows"``; empty for the header.
        size: bytes in the ONNX file; 0 for the header.
        packed: bytes in the packed file.
    """

    name: str
    coding: str
    size: int
    packed: int


@dataclass(frozen=True)
class _Tensor:
    """An initializer's bytes in the file: where they are, and how they are to be read."""

    name: str
    start: int
    size: int
    itemsize: int
    columns: int


def pack(model: bytes) -> bytes:
    """The packed form of an ONNX model; `unpack` gives back exactly its bytes, which is checked.

    Args:
        model: bytes of an ONNX file with its weights inside.

    Returns:
        The packed file, the same for the same bytes.

    Raises:
        CompressionError: the bytes are no ONNX model, or larger than 2 GiB.
    """
    if len(model) > _LIMIT:
        raise CompressionError(f"pack: expected a model of at most {_LIMIT} bytes, got {len(model)}")
    tensors = _tensors(model)
    graph, table, codes, at = bytearray(), bytearray(), [], 0
    for tensor in tensors:
        graph += model[at : tensor.start]
        gap, at = tensor.start - at, tensor.start + tensor.size
        codes.append(encode(model[tensor.start : at], tensor.itemsize, tensor.columns))
        for number in (gap, tensor.size, tensor.itemsize, tensor.columns, len(codes[-1])):
            table += write_number(number)
    graph += model[at:]
    text = encode(bytes(graph))
    head = write_number(len(model)) + write_number(len(text)) + write_number(len(tensors))
    body = b"".join((head, table, text, *codes))
    body += bytes(max(0, -(-(len(model) - _FREE) // _RATIO) - _HEAD - len(body)))
    packed = b"".join(
        (_MAGIC, bytes([_VERSION]), hashlib.sha256(model).digest(), zlib.crc32(body).to_bytes(4, "little"), body)
    )
    if unpack(packed) != model:
        raise CompressionError("pack: expected the same bytes back, got others; the model cannot be packed")
    return packed


def unpack(packed: bytes, *, limit: int = _LIMIT) -> bytes:
    """The ONNX model of which `packed` is the packed form, byte for byte.

    Args:
        packed: what `pack` returned.
        limit: largest model in bytes that is accepted; checked before memory is taken.

    Raises:
        CompressionError: not a packed file, of a version unknown here, larger than `limit`, or damaged.
    """
    model, _ = _read(packed, limit)
    return model


def packed_report(packed: bytes) -> tuple[PackedPart, ...]:
    """What each part of a packed file costs, header first, then the graph, then initializers in the model's order.

    The parts' `packed` add up to the file's bytes.

    Raises:
        CompressionError: as `unpack`.
    """
    model, (text, *codes) = _read(packed, _LIMIT)
    tensors = _tensors(model)
    parts = [
        PackedPart(tensor.name, _word(code), tensor.size, len(code))
        for tensor, code in zip(tensors, codes, strict=True)
    ]
    graph = PackedPart("(graph)", _word(text), len(model) - sum(tensor.size for tensor in tensors), len(text))
    rest = len(packed) - sum(part.packed for part in (graph, *parts))
    return (PackedPart("(header)", "", 0, rest), graph, *parts)


def _word(code: bytes) -> str:
    return coding_of(code).name.lower().replace("_", "-")


def _read(packed: bytes, limit: int) -> tuple[bytes, list[bytes]]:
    """The model and the codes of its parts, the graph's first."""
    if packed[: len(_MAGIC)] != _MAGIC or len(packed) < _HEAD:
        raise CompressionError(
            f"packed file: expected one that begins with {_MAGIC!r} and has at least {_HEAD} bytes, "
            f"got {len(packed)} bytes that begin with {packed[: len(_MAGIC)]!r}"
        )
    version = packed[len(_MAGIC)]
    if version != _VERSION:
        raise CompressionError(
            f"packed file: expected version {_VERSION}, got {version}; unpack it with the autocompress that packed it"
        )
    expected = packed[len(_MAGIC) + 1 : _HEAD - 4]
    wanted, got = int.from_bytes(packed[_HEAD - 4 : _HEAD], "little"), zlib.crc32(packed[_HEAD:])
    if wanted != got:
        raise CompressionError(
            f"packed file of the model with sha256 {expected.hex()}: expected checksum {wanted:08x}, got {got:08x}; "
            "the file is damaged: fetch it again"
        )
    try:
        model, codes = _assemble(packed, limit)
    except ValueError as error:
        raise CompressionError(f"packed file: expected a table of tensors, got a damaged one: {error}") from error
    digest = hashlib.sha256(model).digest()
    if digest != expected:
        raise CompressionError(
            f"packed file: expected a model with sha256 {expected.hex()}, got {digest.hex()}; "
            "the file is damaged: fetch it again"
        )
    return model, codes


def _assemble(packed: bytes, limit: int) -> tuple[bytes, list[bytes]]:
    size, at = read_number(packed, _HEAD)
    if size > limit or size > _FREE + _RATIO * len(packed):
        raise ValueError(f"a model of {size} bytes, of at most {min(limit, _FREE + _RATIO * len(packed))} allowed")
    length, at = read_number(packed, at)
    count, at = read_number(packed, at)
    rows: list[tuple[int, ...]] = []
    while len(rows) < count:
        row = []
        for _ in range(5):
            number, at = read_number(packed, at)
            row.append(number)
        rows.append(tuple(row))
    graph_size = size - sum(row[1] for row in rows)
    if graph_size < sum(row[0] for row in rows) or any(row[2] not in (1, 2, 4, 8) for row in rows):
        raise ValueError("the tensors do not fit into the model")
    codes = []
    for span in (length, *(row[4] for row in rows)):
        if span < 1 or at + span > len(packed):
            raise ValueError("a code is missing")
        codes.append(packed[at : at + span])
        at += span
    if packed[at:].strip(b"\0"):
        raise ValueError(f"{len(packed) - at} bytes too many")
    graph = decode(codes[0], graph_size)
    pieces, at = [], 0
    for (gap, nbytes, itemsize, columns, _), code in zip(rows, codes[1:], strict=True):
        pieces += [graph[at : at + gap], decode(code, nbytes, itemsize, columns)]
        at += gap
    return b"".join((*pieces, graph[at:])), codes


# --- where an ONNX file keeps its initializers --------------------------------------------------------------------
# Field numbers of onnx.proto: ModelProto.graph 7, GraphProto.initializer 5, TensorProto.{dims 1, data_type 2, name 8,
# raw_data 9}. Read from the bytes, not through protobuf, which tells no positions and may write other bytes.


def _tensors(model: bytes) -> list[_Tensor]:
    """Initializers that are worth taking out, in the order of the file."""
    found = []
    try:
        graphs = [(start, end) for number, start, end in _fields(model, 0, len(model)) if number == 7 and start < end]
        if not graphs:
            raise ValueError("it has no graph")
        for start, end in graphs:
            for number, first, last in _fields(model, start, end):
                if number == 5 and (tensor := _tensor(model, first, last)) is not None:
                    found.append(tensor)
    except ValueError as error:
        raise CompressionError(f"pack: expected the bytes of an ONNX model, got others: {error}") from error
    return found


def _tensor(model: bytes, start: int, end: int) -> _Tensor | None:
    dims: list[int] = []
    kind, name, raw = 0, "", []
    for number, first, last in _fields(model, start, end):
        if number == 1:
            at = first
            while at < last:  # one dimension, or several packed into one field
                value, at = read_number(model, at)
                dims.append(value)
        elif number == 2:
            kind, _ = read_number(model, first)
        elif number == 8:
            name = model[first:last].decode("utf-8", "replace")
        elif number == 9:
            raw.append((first, last))
    itemsize = _ITEMSIZE.get(kind)
    if itemsize is None or len(raw) != 1 or raw[0][1] - raw[0][0] < _SMALL:
        return None
    first, last = raw[0]
    numbers, per = math.prod(dims), _PACKED_PER_BYTE.get(kind, 1)
    if -(-numbers // per) * itemsize != last - first:
        return None
    stored = (last - first) // itemsize
    rows = dims[0] if len(dims) > 1 else 1
    columns = stored // rows if stored % rows == 0 else stored
    return _Tensor(name, first, last - first, itemsize, columns)


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Fields of the message in ``data[start:end]``: number, and start and end of the value."""
    at = start
    while at < end:
        tag, at = read_number(data, at)
        wire = tag & 7
        if wire == 0:
            first, (_, last) = at, read_number(data, at)
        elif wire in (1, 5):
            first, last = at, at + (8 if wire == 1 else 4)
        elif wire == 2:
            length, first = read_number(data, at)
            last = first + length
        else:
            raise ValueError(f"a field of wire type {wire} at byte {at}")
        if last > end:
            raise ValueError(f"a field at byte {at} that ends behind its message")
        yield tag >> 3, first, last
        at = last
