"""Safetensors from anywhere: a recorded corpus of damage, every truncation, and mutations of valid files.

What the safetensors library reads is the oracle: whatever both accept must be the same tensors.
"""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from chainfed.core.errors import BundleError
from chainfed.core.tensor_layout import MAX_HEADER_BYTES, DamagedTensorsError, layout_of_bytes, layout_of_file
from chainfed.core.tensors import decode, encode, read_layout

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "damaged" / "safetensors.json").read_text(encoding="utf-8")
)["cases"]
TENSORS = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([0.5, -2.0], np.float32),
    "scalar": np.array(7.0, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}
VALID = encode(TENSORS)


def bytes_of(case: dict[str, Any]) -> bytes:
    header = bytes.fromhex(case["header_hex"]) if "header_hex" in case else case["header"].encode()
    header += case.get("repeat", "").encode() * case.get("times", 0)
    return struct.pack("<Q", int(case.get("length", len(header)))) + header + bytes(case["data_bytes"])


def with_header(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_the_corpus_is_refused_or_accepted_as_recorded(case: dict[str, Any], tmp_path: Path) -> None:
    data = bytes_of(case)
    (tmp_path / "file.safetensors").write_bytes(data)
    tracemalloc.start()
    try:
        if case.get("accepted"):
            assert layout_of_bytes(data) == layout_of_file(tmp_path / "file.safetensors")
            assert decode(data, "file").keys() == safetensors.numpy.load(data).keys()
        else:
            with pytest.raises(BundleError, match=r"^file\.safetensors is no safetensors file: .*export it again\.$"):
                read_layout(tmp_path / "file.safetensors")
            with pytest.raises(BundleError, match=r"^the update is not a readable safetensors file: "):
                decode(data, "the update")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "layer_00.safetensors"
    for length in range(len(VALID)):
        path.write_bytes(VALID[:length])
        with pytest.raises(BundleError, match=r"layer_00\.safetensors"):
            read_layout(path)
        with pytest.raises(BundleError):
            decode(VALID[:length], "update")
    assert {name: tensor.tolist() for name, tensor in decode(VALID, "update").items()} == {
        name: tensor.tolist() for name, tensor in TENSORS.items()
    }


def test_a_large_header_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 3_000_000_000))
        file.truncate(4_000_000_000)
    tracemalloc.start()
    with pytest.raises(DamagedTensorsError, match=f"more than the {MAX_HEADER_BYTES} allowed"):
        layout_of_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_other_dtypes_have_a_layout_but_are_no_model_state(tmp_path: Path) -> None:
    data = safetensors.numpy.save({"a": np.arange(3, dtype=np.float16), "b": np.arange(2, dtype=np.int64)})
    assert {name: (place.dtype, place.nbytes) for name, place in layout_of_bytes(data).items()} == {
        "a": ("F16", 6),
        "b": ("I64", 16),
    }
    with pytest.raises(BundleError, match=r"update: tensor '[ab]' is (F16|I64), but ChainFed expects float32"):
        decode(data, "update")


def test_a_tensor_that_lies_at_an_odd_place_is_read(tmp_path: Path) -> None:
    data = with_header({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, struct.pack("<2f", 1.5, -2.0))
    assert layout_of_bytes(data)["t"].offset % 4, "choose a header of another length"
    assert decode(data, "update")["t"].tolist() == [1.5, -2.0]


def outcome(data: bytes) -> dict[str, Any] | None:
    """The tensors as lists; None when the bytes are refused. Anything but a refusal by one sentence fails the test."""
    try:
        return {name: (tensor.shape, tensor.tobytes()) for name, tensor in decode(data, "file").items()}
    except BundleError as error:
        assert "\n" not in str(error)
        assert str(error).isprintable()
        assert len(str(error)) < 600
        return None


def check_against_the_library(data: bytes) -> None:
    ours = outcome(data)
    if ours is None:
        return
    end = len(data)
    assert all(0 <= place.offset <= place.offset + place.nbytes <= end for place in layout_of_bytes(data).values())
    try:
        theirs = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError):
        return  # it refuses more: it wants `__metadata__` to be text, for one
    assert ours == {name: (tensor.shape, tensor.tobytes()) for name, tensor in theirs.items()}


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_changed_bytes_are_refused_or_read_as_the_library_reads_them(changes: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for position, value in changes:
        data[position] = value
    check_against_the_library(bytes(data))


@given(
    st.integers(0, len(VALID)),
    st.integers(0, len(VALID)),
    st.one_of(st.binary(max_size=24), st.sampled_from([b"NaN", b"1e400", b"-1", b'"', b"\\ud800", b"{}", b"[]", b" "])),
)
def test_replaced_pieces_are_refused_or_read_as_the_library_reads_them(start: int, end: int, piece: bytes) -> None:
    check_against_the_library(VALID[: min(start, end)] + piece + VALID[max(start, end) :])


_ODD = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.none(),
    st.booleans(),
    st.text(max_size=3),
    st.lists(st.integers(-2, 40), max_size=4),
)


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__", ""]),
        st.one_of(
            _ODD,
            st.fixed_dictionaries(
                {},
                optional={
                    "dtype": st.one_of(st.sampled_from(["F32", "F16", "I64", "F4", "BOOL"]), _ODD),
                    "shape": st.one_of(st.lists(st.one_of(st.integers(0, 5), _ODD), max_size=3), _ODD),
                    "data_offsets": st.one_of(st.lists(st.one_of(st.integers(0, 40), _ODD), max_size=3), _ODD),
                },
            ),
        ),
        max_size=3,
    ),
    st.binary(max_size=40),
)
def test_headers_of_any_values_are_refused_or_read_as_the_library_reads_them(
    header: dict[str, Any], data: bytes
) -> None:
    check_against_the_library(with_header(header, data))
