"""Codes for the bytes of one tensor, all exact; the smallest is kept.

A tensor with few distinct values is written as a codebook and a stream of indices, by range coding under a model that
learns as it goes. Where one value prevails (the zeros of pruning), positions and values may be coded apart: a position
is as likely as the row's and the column's positions so far make it. Any other tensor falls back on general-purpose
compression, on its bytes as they are or gathered by significance. Bytes are compared and kept as they are: negative
zeros and the payloads of NaNs survive.

All probabilities come from integer arithmetic, so that every machine decodes what another one wrote.

References:
    Martin, 1979, "Range encoding: an algorithm for removing redundancy from a digitised message";
    Krichevsky and Trofimov, 1981, "The performance of universal encoding";
    Bamler, 2022, "Understanding Entropy Coding With Asymmetric Numeral Systems (ANS): a Statistician's Perspective".
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, TypeAlias

import constriction  # type: ignore[import-untyped]
import numpy as np

from autocompress.errors import CompressionError

# The library's parts are attributes, not modules that can be imported from.
_Bernoulli = constriction.stream.model.Bernoulli
_Categorical = constriction.stream.model.Categorical
_Encoder: TypeAlias = Any  # constriction.stream.queue.RangeEncoder
_Decoder: TypeAlias = Any
#: One unit of probability is 2^-20: masks of 1 in 10,000 are still told from empty ones.
_ONE = 1 << 20
#: How many rows' worth of evidence the overall density is, for a column; and of expected ones, for a row.
_COLUMN_PRIOR, _ROW_PRIOR = 2, 3
#: Steps in which a mask is coded, at most; more are finer but slower.
_STEPS = 16_000
_PARTS = 16
_MAX_CODEBOOK = 1 << 16
#: Above so many bytes dictionary coders are left out where a codebook serves, and the slow one anywhere.
_LARGE = 1 << 20
_UNSIGNED: dict[int, np.dtype[Any]] = {1: np.dtype("u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}


class Coding(IntEnum):
    """How bytes are written; the first byte of every code."""

    RAW = 0
    DEFLATE = 1
    LZMA = 2
    ADAPTIVE = 3  # range coder, adaptive frequencies of single bytes
    PLANES = 4  # bytes by significance, each plane in a coding of its own
    VALUES = 5  # codebook, then one stream of indices
    MASK_ROWS = 6  # codebook, then positions row by row, then the other values' indices
    MASK_COLUMNS = 7  # the same with positions column by column


def encode(data: bytes, itemsize: int = 1, columns: int = 1) -> bytes:
    """The smallest of all codes for `data`.

    Args:
        data: little-endian numbers.
        itemsize: bytes of one number: 1, 2, 4 or 8.
        columns: numbers in a row, where the data is a matrix.

    Returns:
        A code that `decode` reads; its first byte is the `Coding`.
    """
    codes = list(_encode_values(np.frombuffer(data, _UNSIGNED[itemsize]), columns))
    if len(data) <= _LARGE or not codes:
        codes.append(_general(data))
        if itemsize > 1 and len(data) > 0:
            codes.append(_code(Coding.PLANES, _encode_planes(data, itemsize)))
    return min(codes, key=len)


def decode(code: bytes, size: int, itemsize: int = 1, columns: int = 1) -> bytes:
    """The bytes that `encode` was given.

    Args:
        code: what `encode` returned.
        size: how many bytes it was given; the caller has checked that so many may be held in memory.
        itemsize: as given to `encode`.
        columns: as given to `encode`.

    Raises:
        CompressionError: the code is damaged, or for data of another size.
    """
    try:
        return _decode(code, size, itemsize, columns)
    except (ValueError, IndexError, AssertionError, OverflowError, lzma.LZMAError, zlib.error) as error:
        raise CompressionError(f"packed file: expected a code for {size} bytes, got a damaged one ({error})") from error


def coding_of(code: bytes) -> Coding:
    """Which coding a code is in; ValueError if none."""
    return Coding(code[0])


def write_number(value: int) -> bytes:
    """A non-negative integer in 7-bit groups, the lowest first."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def read_number(data: bytes, position: int) -> tuple[int, int]:
    """The integer at `position`, and the position behind it.

    Raises:
        ValueError: the data ends within it, or it has more than ten groups.
    """
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("expected a number, got the end of the data")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("expected a number of at most ten bytes, got a longer one")


def _code(coding: Coding, body: bytes) -> bytes:
    return bytes([coding]) + body


# --- bytes of any kind --------------------------------------------------------------------------------------------


def _general(data: bytes) -> bytes:
    deflate = zlib.compressobj(9 if len(data) <= _LARGE else 6, zlib.DEFLATED, -15, 9)
    codes = [_code(Coding.RAW, data), _code(Coding.DEFLATE, deflate.compress(data) + deflate.flush())]
    if len(data) <= _LARGE:
        codes.append(_code(Coding.LZMA, lzma.compress(data, lzma.FORMAT_RAW, filters=_lzma(len(data)))))
    if len(data) > 0:
        encoder = constriction.stream.queue.RangeEncoder()
        _encode_indices(encoder, np.frombuffer(data, np.uint8).astype(np.int32), 256)
        codes.append(_code(Coding.ADAPTIVE, _finish(encoder)))
    return min(codes, key=len)


def _lzma(size: int) -> list[dict[str, int]]:
    """A dictionary of the data's size, at most `_LARGE`: a large one takes longer to set up than small data to code."""
    window = min(_LARGE, max(4096, 1 << size.bit_length()))
    return [{"id": lzma.FILTER_LZMA1, "dict_size": window, "lc": 3, "lp": 0, "pb": 2}]


def _encode_planes(data: bytes, itemsize: int) -> bytes:
    planes = [_general(data[byte::itemsize]) for byte in range(itemsize)]
    return b"".join(write_number(len(plane)) + plane for plane in planes)


def _decode(code: bytes, size: int, itemsize: int, columns: int) -> bytes:
    coding, body = coding_of(code), code[1:]
    if coding is Coding.RAW:
        data = body
    elif coding is Coding.DEFLATE:
        inflate = zlib.decompressobj(-15)
        data = inflate.decompress(body, size + 1)
    elif coding is Coding.LZMA:
        data = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_lzma(size)).decompress(body, size + 1)
    elif coding is Coding.ADAPTIVE:
        data = _decode_indices(_start(body), size, 256).astype(np.uint8).tobytes()
    elif coding is Coding.PLANES:
        data = _decode_planes(body, size, itemsize)
    else:
        data = _decode_values(coding, body, size, itemsize, columns)
    if len(data) != size:
        raise ValueError(f"it holds {len(data)} bytes or more")
    return data


def _decode_planes(body: bytes, size: int, itemsize: int) -> bytes:
    if itemsize == 1 or size % itemsize:
        raise ValueError(f"planes of {itemsize} bytes do not make {size}")
    planes = np.empty((size // itemsize, itemsize), np.uint8)
    position = 0
    for byte in range(itemsize):
        length, position = read_number(body, position)
        plane, position = body[position : position + length], position + length
        if not plane or coding_of(plane) > Coding.ADAPTIVE:
            raise ValueError("a plane is missing, or in a coding for whole numbers")
        planes[:, byte] = np.frombuffer(_decode(plane, size // itemsize, 1, 1), np.uint8)
    return planes.tobytes()


# --- few distinct values ------------------------------------------------------------------------------------------


def _encode_values(numbers: np.ndarray, columns: int) -> Iterator[bytes]:
    """Codes with a codebook: one stream; and, where one value is the most frequent by far, positions apart."""
    # A sample tells most tensors of floats without sorting them all.
    if len(numbers) == 0 or len(np.unique(numbers[:4096])) > min(len(numbers), 4096) * 0.75:
        return
    book, indices, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    if len(book) > min(_MAX_CODEBOOK, len(numbers)):
        return
    indices = indices.astype(np.int32)
    head = write_number(len(book)) + book.tobytes()
    encoder = constriction.stream.queue.RangeEncoder()
    _encode_indices(encoder, indices, len(book))
    yield _code(Coding.VALUES, head + _finish(encoder))
    common = int(counts.argmax())
    if columns < 1 or len(numbers) % columns or len(book) < 2:
        return
    mask = (indices != common).reshape(-1, columns)
    rest = indices[indices != common]
    rest = rest - (rest > common)
    for coding, positions in ((Coding.MASK_ROWS, mask), (Coding.MASK_COLUMNS, mask.T)):
        encoder = constriction.stream.queue.RangeEncoder()
        _encode_mask(encoder, np.ascontiguousarray(positions))
        _encode_indices(encoder, rest, len(book) - 1)
        yield _code(coding, head + write_number(common) + _finish(encoder))


def _decode_values(coding: Coding, body: bytes, size: int, itemsize: int, columns: int) -> bytes:
    count, position = read_number(body, 0)
    if not 1 <= count <= min(_MAX_CODEBOOK, size // itemsize) or size % itemsize:
        raise ValueError(f"a codebook of {count} values for {size} bytes")
    end = position + count * itemsize
    if end > len(body):
        raise ValueError("the codebook is cut off")
    book = np.frombuffer(body[position:end], _UNSIGNED[itemsize])
    total = size // itemsize
    if coding is Coding.VALUES:
        values: bytes = book[_decode_indices(_start(body[end:]), total, count)].tobytes()
        return values
    common, position = read_number(body, end)
    if count < 2 or common >= count or columns < 1 or total % columns:
        raise ValueError(f"value {common} of {count} at every position but some, in rows of {columns}")
    decoder = _start(body[position:])
    shape = (total // columns, columns)
    mask = _decode_mask(decoder, *(shape if coding is Coding.MASK_ROWS else shape[::-1]))
    if coding is Coding.MASK_COLUMNS:
        mask = mask.T
    rest = _decode_indices(decoder, int(mask.sum()), count - 1)
    indices = np.full(shape, common, np.int32)
    indices[mask] = rest + (rest >= common)
    return book[indices].tobytes()


# --- models -------------------------------------------------------------------------------------------------------


def _finish(encoder: _Encoder) -> bytes:
    words: np.ndarray = encoder.get_compressed()
    code: bytes = words.astype("<u4").tobytes()
    return code.rstrip(b"\0")  # the decoder reads zeros behind the end


def _start(code: bytes) -> _Decoder:
    words = np.frombuffer(code + b"\0" * (-len(code) % 4), "<u4").astype(np.uint32)
    return constriction.stream.queue.RangeDecoder(words)


def _encode_indices(encoder: _Encoder, indices: np.ndarray, alphabet: int) -> None:
    """Indices under their own frequencies so far (+ ½ each, Krichevsky and Trofimov)."""
    if alphabet > 1:
        _indices(len(indices), alphabet, lambda model, part: _put(encoder, indices[part], model))


def _decode_indices(decoder: _Decoder, total: int, alphabet: int) -> np.ndarray:
    if alphabet <= 1:
        return np.zeros(total, np.int32)
    return _indices(total, alphabet, lambda model, part: decoder.decode(model, part.stop - part.start))


def _put(encoder: _Encoder, symbols: np.ndarray, *model: object) -> np.ndarray:
    encoder.encode(np.ascontiguousarray(symbols, np.int32), *model)
    return symbols


def _indices(total: int, alphabet: int, code: Callable[[Any, slice], np.ndarray]) -> np.ndarray:
    """Code runs of indices, each an eighth of what is known, under the frequencies before it."""
    counts = np.ones(alphabet, np.int64)
    done = np.empty(total, np.int32)
    start = 0
    while start < total:
        part = slice(start, min(total, start + max(16, start // 8)))
        done[part] = code(_Categorical(counts.astype(np.float64), perfect=False), part)
        counts += 2 * np.bincount(done[part], minlength=alphabet)
        start = part.stop
    return done


def _encode_mask(encoder: _Encoder, mask: np.ndarray) -> None:
    bits = mask.astype(np.int32)
    rows, columns = mask.shape
    _mask(rows, columns, lambda p, rows, part: _put(encoder, bits[rows, part].ravel(), _Bernoulli(perfect=False), p))


def _decode_mask(decoder: _Decoder, rows: int, columns: int) -> np.ndarray:
    return _mask(rows, columns, lambda p, _rows, _part: decoder.decode(_Bernoulli(perfect=False), p))


def _mask(rows: int, columns: int, code: Callable[[np.ndarray, slice, slice], np.ndarray]) -> np.ndarray:
    """Code a mask row by row, each row in interleaved parts.

    The chance of a one is its column's share of ones so far, times the ratio of the ones in this row so far to those
    that the columns' shares made one expect. Both begin at the overall share. Integers in units of 2^-20.

    Args:
        rows: of the mask.
        columns: of the mask.
        code: codes the bits of some rows and columns, given the chance of a one for each, and returns them.

    Returns:
        Booleans, shape (rows, columns).
    """
    done = np.zeros((rows, columns), bool)
    # Very long masks take several rows at a time, and whole rows, so that the number of steps stays bounded.
    block = -(-rows // _STEPS)
    parts = max(1, min(_PARTS, _STEPS // max(1, rows))) if block == 1 else 1
    column_ones = np.zeros(columns, np.int64)
    for start in range(0, rows, block):
        height = slice(start, min(rows, start + block))
        overall = _ONE * (2 * int(column_ones.sum()) + 1) // (2 * start * columns + 2)
        chance = (_ONE * column_ones + _COLUMN_PRIOR * overall) // (start + _COLUMN_PRIOR)
        seen, expected = 0, 0
        for offset in range(min(parts, columns)):
            part = slice(offset, columns, parts)
            ratio = min(_ONE * _ONE * (seen + _ROW_PRIOR) // (expected + _ROW_PRIOR * _ONE), _ONE * 1024)
            p = np.clip(chance[part] * ratio // _ONE, 1, _ONE - 1)
            bits = code(np.tile(p, height.stop - height.start) / _ONE, height, part)
            done[height, part] = bits.reshape(height.stop - height.start, -1)
            seen += int(done[height, part].sum())
            expected += int(chance[part].sum())
        column_ones += done[height].sum(0)
    return done
