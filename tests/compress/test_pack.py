from __future__ import annotations

import functools
import zlib
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from autocompress.compress import coding
from autocompress.compress.coding import Coding, decode, encode, read_number, write_number
from autocompress.compress.pack import pack, packed_report, unpack
from autocompress.errors import CompressionError

_DTYPES = ["float32", "float16", "float64", "int8", "uint8", "int32", "int64"]


def _model(*tensors: TensorProto, note: str = "") -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        initializer=list(tensors),
        doc_string=note,
    )
    data: bytes = helper.make_model(graph, ir_version=10).SerializeToString()
    return data


def _tensor(array: np.ndarray, name: str = "w") -> TensorProto:
    return numpy_helper.from_array(array, name)


def _pruned(rows: int, columns: int, density: float, values: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    book = rng.normal(size=values).astype(np.float32)
    keep = rng.random((rows, columns)) < density
    return np.where(keep, book[rng.integers(0, values, (rows, columns))], np.float32(0))


def _entropy(p: float) -> float:
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)))


# --- round trips --------------------------------------------------------------------------------------------------


@st.composite
def _arrays(draw: st.DrawFn) -> np.ndarray:
    """Random bits of every kind of number (NaNs of any payload, -0.0), some with few values, some sparse."""
    dtype = np.dtype(draw(st.sampled_from(_DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 12), min_size=0, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = int(np.prod(shape))
    bits = rng.integers(0, 256, (size, dtype.itemsize), dtype=np.uint8)
    few = draw(st.sampled_from([0, 1, 2, 5, 16]))
    if few and size:
        bits = bits[rng.integers(0, min(few, size), size)]
    bits = bits * (rng.random((size, 1)) < draw(st.sampled_from([1.0, 0.5, 0.05]))).astype(np.uint8)
    return np.frombuffer(bits.tobytes(), dtype).reshape(shape)


@settings(max_examples=50, deadline=None)
@given(st.lists(_arrays(), max_size=3), st.text(max_size=30))
def test_every_model_comes_back_byte_for_byte(arrays: list[np.ndarray], note: str) -> None:
    model = _model(*(_tensor(a, f"w{i}") for i, a in enumerate(arrays)), note=note)
    packed = pack(model)
    assert unpack(packed) == model
    assert pack(model) == packed
    parts = packed_report(packed)
    assert sum(part.packed for part in parts) == len(packed)
    assert sum(part.size for part in parts) == len(model)


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([1, 2, 4, 8]), st.integers(0, 9))
def test_every_code_of_some_bytes_is_exact(data: bytes, itemsize: int, columns: int) -> None:
    data = data[: len(data) // itemsize * itemsize]
    assert decode(encode(data, itemsize, columns), len(data), itemsize, columns) == data


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (30, 70), (40, 3, 5, 5)])
def test_each_way_of_writing_few_values_is_exact(shape: tuple[int, ...], density: float) -> None:
    array = _pruned(shape[0], int(np.prod(shape[1:])), density, 7).reshape(shape)
    columns = array.size // shape[0]
    codes = list(coding._encode_values(np.frombuffer(array.tobytes(), "<u4"), columns))
    wanted = {Coding.VALUES} if density == 0.0 else {Coding.VALUES, Coding.MASK_ROWS, Coding.MASK_COLUMNS}
    assert {code[0] for code in codes} == wanted
    for code in codes:
        assert decode(code, array.nbytes, 4, columns) == array.tobytes()


def test_long_masks_take_several_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "_STEPS", 7)
    array = _pruned(50, 9, 0.2, 4)
    for code in coding._encode_values(np.frombuffer(array.tobytes(), "<u4"), 9):
        assert decode(code, array.nbytes, 4, 9) == array.tobytes()


def test_negative_zeros_and_nan_payloads_survive() -> None:
    bits = np.array([0x00000000, 0x80000000, 0x7FC00001, 0xFFC12345, 0x7F800000] * 40, np.uint32)
    model = _model(_tensor(bits.view(np.float32).reshape(20, 10)))
    assert bits.tobytes() in unpack(pack(model))


def test_large_tensors_skip_the_slow_coders_and_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "_LARGE", 1 << 14)
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(60, 80)).astype(np.float32)
    packed = pack(_model(_tensor(dense, "dense"), _tensor(_pruned(60, 80, 0.05, 15), "pruned")))
    codings = {part.name: part.coding for part in packed_report(packed)}
    assert codings["dense"] == "planes"
    assert codings["pruned"] in ("values", "mask-rows", "mask-columns")
    # Mantissas are noise; sign and exponent are not.
    assert len(packed) < 0.95 * dense.nbytes + 600


def test_a_pruned_layer_with_shared_weights_packs_to_its_entropy() -> None:
    weight = _pruned(100, 200, 0.05, 16)
    parts = {part.name: part for part in packed_report(pack(_model(_tensor(weight))))}
    density = float((weight != 0).mean())
    ideal = (20_000 * _entropy(density) + 20_000 * density * 4) / 8 + 16 * 4
    assert parts["w"].size == 80_000
    assert ideal * 0.95 < parts["w"].packed < ideal * 1.1


def test_positions_cost_less_where_columns_or_rows_differ_in_density() -> None:
    rng = np.random.default_rng(1)
    chance = np.repeat(rng.choice([0.001, 0.2], 200), 1)
    mask = rng.random((300, 200)) < chance
    apart = 300 * sum(_entropy(p) for p in chance) / 8
    together = mask.size * _entropy(float(mask.mean())) / 8
    assert apart < 0.85 * together
    for array in (mask, mask.T):
        data = np.ascontiguousarray(array, np.uint8).tobytes()
        code = encode(data, 1, array.shape[1])
        # One value beside the common one: the code is all mask.
        assert coding.coding_of(code) is (Coding.MASK_ROWS if array is mask else Coding.MASK_COLUMNS)
        assert len(code) < 1.12 * apart


def test_a_row_that_is_empty_so_far_stays_cheap() -> None:
    rng = np.random.default_rng(2)
    mask = (rng.random((100, 400)) < 0.2) & (rng.random((100, 1)) < 0.3)
    code = encode(mask.astype(np.uint8).tobytes(), 1, 400)
    flat = mask.size * _entropy(float(mask.mean())) / 8
    assert len(code) < 0.75 * flat


def test_quantized_weights_pack_to_their_entropy() -> None:
    rng = np.random.default_rng(0)
    array = np.clip(np.round(rng.normal(size=(64, 300)) * 20), -127, 127).astype(np.int8)
    _, counts = np.unique(array, return_counts=True)
    shares = counts / array.size
    ideal = array.size * float(-(shares * np.log2(shares)).sum()) / 8
    (part,) = (p for p in packed_report(pack(_model(_tensor(array)))) if p.name == "w")
    assert part.packed < 1.03 * ideal + 200


def test_four_bit_integers_and_other_kinds_are_taken_as_bytes() -> None:
    four = helper.make_tensor("four", TensorProto.INT4, [40, 5], bytes(range(100)), raw=True)
    text = helper.make_tensor("text", TensorProto.STRING, [2], [b"a" * 50, b"b"])
    model = _model(four, text, _tensor(np.arange(3, dtype=np.float32), "small"))
    names = [part.name for part in packed_report(pack(model))]
    assert names == ["(header)", "(graph)", "four"]


def test_an_old_model_with_numbers_in_fields_of_their_own_is_exact() -> None:
    tensor = helper.make_tensor("w", TensorProto.INT64, [50], list(range(-25, 25)))  # int64_data, with negative numbers
    model = _model(tensor)
    assert onnx.load_model_from_string(unpack(pack(model))).graph.initializer[0].int64_data[0] == -25


@given(st.integers(0, 2**63 - 1))
def test_numbers_round_trip(value: int) -> None:
    written = write_number(value)
    assert read_number(b"x" + written + b"y", 1) == (value, 1 + len(written))


# --- what is no packed file ---------------------------------------------------------------------------------------


@functools.cache
def _packed() -> bytes:
    return pack(_model(_tensor(_pruned(20, 30, 0.1, 4), "a"), _tensor(np.linspace(0, 1, 50, dtype=np.float32), "b")))


def _sealed(packed: bytes) -> bytes:
    """With the checksum that the rest should have: damage that only a hostile writer makes."""
    return packed[:36] + zlib.crc32(packed[40:]).to_bytes(4, "little") + packed[40:]


def test_every_cut_is_refused() -> None:
    packed = _packed()
    for end in range(len(packed)):
        with pytest.raises(CompressionError, match=r"^packed file"):
            unpack(packed[:end])
        if end >= 40:
            with pytest.raises(CompressionError):
                unpack(_sealed(packed[:end]))


def test_every_flipped_byte_is_refused() -> None:
    packed, refused = _packed(), 0
    model = unpack(packed)
    for position in range(len(packed)):
        for flip in (0x01, 0x80, 0xFF):
            bad = bytearray(packed)
            bad[position] ^= flip
            with pytest.raises(CompressionError, match=r"^packed file"):
                unpack(bytes(bad))
            # Bits that no decoder looks at may differ; what comes back may not.
            if position >= 40 and flip == 0xFF:
                try:
                    assert unpack(_sealed(bytes(bad))) == model
                except CompressionError as error:
                    refused += "packed file" in str(error)
    assert refused > 0.9 * (len(packed) - 40)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_behind_a_true_header_are_refused(body: bytes) -> None:
    with pytest.raises(CompressionError):
        unpack(_sealed(_packed()[:40] + body))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(Coding)), st.binary(max_size=120), st.integers(0, 3000), st.sampled_from([1, 2, 4, 8]),
       st.integers(0, 60))  # fmt: skip
def test_a_hostile_code_is_refused_or_gives_the_size_that_was_asked(
    kind: Coding, body: bytes, size: int, itemsize: int, columns: int
) -> None:
    try:
        data = decode(bytes([kind]) + body, size, itemsize, columns)
    except CompressionError as error:
        assert f"expected a code for {size} bytes, got a damaged one" in str(error)  # noqa: PT017
    else:
        assert len(data) == size


def _with_size(size: int) -> bytes:
    head = write_number(size) + write_number(1) + write_number(0) + b"\0"
    return _sealed(_packed()[:40] + head)


@pytest.mark.parametrize("size", [1 << 31, (1 << 62), (1 << 20) + 4096 * 200])
def test_sizes_are_checked_before_memory_is_taken(size: int) -> None:
    with pytest.raises(CompressionError, match=rf"a model of {size} bytes, of at most \d+ allowed"):
        unpack(_with_size(size))


def test_a_bomb_stops_at_the_size_that_was_announced() -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    code = bytes([Coding.DEFLATE]) + bomb.compress(bytes(50_000_000)) + bomb.flush()
    with pytest.raises(CompressionError, match="expected a code for 1000 bytes, got a damaged one"):
        decode(code, 1000)


def test_a_limit_may_be_lower() -> None:
    packed = _packed()
    size = len(unpack(packed))
    assert unpack(packed, limit=size)
    with pytest.raises(CompressionError, match=f"a model of {size} bytes, of at most {size - 1} allowed"):
        unpack(packed, limit=size - 1)


def test_a_model_of_zeros_is_padded_rather_than_refused() -> None:
    model = _model(_tensor(np.zeros((3000, 1000), np.float32)))
    packed = pack(model)
    assert len(packed) * 4096 + (1 << 20) >= len(model) > len(packed) * 4000
    assert unpack(packed) == model


def test_what_is_wrong_is_said() -> None:
    packed = _packed()
    model = unpack(packed)
    digest = packed[4:36].hex()
    with pytest.raises(CompressionError, match=r"begins with b'ACP' .* got \d+ bytes that begin with b'\\x08"):
        unpack(model)
    with pytest.raises(CompressionError, match="expected version 1, got 2; unpack it with the autocompress that"):
        unpack(packed[:3] + b"\x02" + packed[4:])
    with pytest.raises(CompressionError, match=rf"sha256 {digest}: expected checksum [0-9a-f]{{8}}, got [0-9a-f]{{8}}"):
        unpack(packed[:-1] + bytes([packed[-1] ^ 1]))
    other = packed[:4] + bytes(32) + packed[36:]
    with pytest.raises(CompressionError, match=rf"expected a model with sha256 {'00' * 32}, got {digest}; the file is"):
        unpack(other)
    for bad in (b"", b"\xff\xff", b"hello world", packed):
        with pytest.raises(CompressionError, match=r"^pack: expected the bytes of an ONNX model, got others"):
            pack(bad)


def test_a_model_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.compress.pack._LIMIT", 10)
    with pytest.raises(CompressionError, match=r"expected a model of at most 10 bytes, got \d+"):
        pack(_model())


def test_the_coder_is_the_one_that_wrote_older_files() -> None:
    # The format depends on the library's arithmetic: bytes that were written once must be read for ever.
    code = bytes.fromhex(_OLD_CODE)
    array = _old_array()
    assert code in coding._encode_values(np.frombuffer(array.tobytes(), "<u4"), 8)
    assert decode(code, array.nbytes, 4, 8) == array.tobytes()


def _old_array() -> np.ndarray:
    array: Any = np.zeros((40, 8), np.float32)
    array[::7, 3], array[::3, 5], array[11, :] = 0.5, -0.25, 1.0
    return array


_OLD_CODE = "0604000000000000003f0000803f000080be005d0d532454964a8fccdd5d32bc936303c8e6024bcbe7fc94"
