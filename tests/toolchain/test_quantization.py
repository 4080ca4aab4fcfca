"""How weights are stored in fewer bits: against slow, obvious formulas, and what cannot be stored is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from chainfed.toolchain.quantization import NotStorableError, matrices, narrow, stored_tensors, token_table, widen

SHAPES = {"dense.weight": (6, 64), "odd.weight": (5, 48), "dense.bias": (6,), "scaling": ()}
NAMES = matrices(SHAPES)


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    drawn = {name: generator.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}
    drawn["dense.weight"][2] = 0.0
    return drawn


def slow_int8(matrix: np.ndarray) -> np.ndarray:
    """What int8 makes of a matrix, one number at a time."""
    wide = np.zeros_like(matrix)
    for row, values in enumerate(matrix):
        scale = np.float32(max(abs(value) for value in values)) / np.float32(127) or np.float32(1)
        for column, value in enumerate(values):
            wide[row, column] = np.float32(round(float(value / scale))) * scale  # round() takes halves to even
    return wide


def slow_int4(matrix: np.ndarray) -> np.ndarray:
    """What int4 makes of a matrix, one number at a time; torch rounds the scales to bfloat16."""
    wide = np.zeros_like(matrix)
    for row, values in enumerate(matrix):
        for start in range(0, len(values), 32):
            group = values[start : start + 32]
            largest = torch.tensor(np.float32(max(abs(value) for value in group)) / np.float32(7))
            scale = np.float32(largest.to(torch.bfloat16).float().item() or 1.0)
            for column, value in enumerate(group, start):
                wide[row, column] = np.float32(min(7, max(-8, round(float(value / scale))))) * scale
    return wide


def test_only_matrices_are_narrowed(tensors: dict[str, np.ndarray]) -> None:
    assert {"dense.weight", "odd.weight"} == NAMES
    stored = narrow(tensors, NAMES, "int8")
    for name in ("dense.bias", "scaling"):
        assert stored[name] is tensors[name]


@pytest.mark.parametrize("dtype", ["f32", "f16", "int8", "int4"])
def test_what_is_stored_has_the_announced_names_shapes_and_dtypes(dtype, tensors: dict[str, np.ndarray]) -> None:
    stored = narrow(tensors, NAMES, dtype)
    announced = stored_tensors(SHAPES, NAMES, dtype)
    assert [(name, array.shape, str(array.dtype)) for name, array in stored.items()] == [
        tuple(each) for each in announced
    ]
    assert {name: array.shape for name, array in widen(stored).items()} == SHAPES


def test_of_the_embeddings_only_the_table_of_tokens_is_narrowed() -> None:
    """Even where another table happens to have as many rows."""
    shapes = {"word.weight": (50, 8), "position.weight": (50, 8), "norm.weight": (8,)}
    assert token_table(shapes, vocab_size=50) == {"word.weight"}


def test_f32_changes_nothing_and_f16_rounds_each_number(tensors: dict[str, np.ndarray]) -> None:
    assert all(np.array_equal(array, tensors[name]) for name, array in widen(narrow(tensors, NAMES, "f32")).items())
    wide = widen(narrow(tensors, NAMES, "f16"))["dense.weight"]
    assert np.array_equal(wide, torch.from_numpy(tensors["dense.weight"]).half().float().numpy())


def test_int8_is_a_scale_for_each_row(tensors: dict[str, np.ndarray]) -> None:
    wide = widen(narrow(tensors, NAMES, "int8"))
    for name in NAMES:
        assert np.array_equal(wide[name], slow_int8(tensors[name]))


def test_int4_is_a_scale_for_each_group_and_int8_where_groups_do_not_fit(tensors: dict[str, np.ndarray]) -> None:
    wide = widen(narrow(tensors, NAMES, "int4"))
    assert np.array_equal(wide["dense.weight"], slow_int4(tensors["dense.weight"]))
    assert np.array_equal(wide["odd.weight"], slow_int8(tensors["odd.weight"]))


def test_two_int4_codes_share_a_byte_as_documented() -> None:
    row = np.concatenate([np.full(31, 0.5), [7.0], np.full(31, -3.0), [-7.0]]).astype(np.float32)[None]
    stored = narrow({"w": row}, {"w"}, "int4")
    assert np.array_equal(stored["w.group_scale"], [[1.0, 1.0]])
    assert stored["w"][0, 0] == (-3 << 4) + (0 + 8)
    assert stored["w"][0, 31] == (-7 << 4) + (7 + 8)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", ["f16", "int8", "int4"])
def test_values_that_are_not_finite_cannot_be_stored(dtype, value: float, tensors: dict[str, np.ndarray]) -> None:
    tensors["dense.weight"][1, 1] = value
    with pytest.raises(NotStorableError, match=r"dense\.weight has values that are not finite"):
        narrow(tensors, NAMES, dtype)


def test_float16_refuses_what_it_cannot_hold(tensors: dict[str, np.ndarray]) -> None:
    tensors["dense.weight"][1, 1] = 70_000.0
    with pytest.raises(NotStorableError, match=r"dense\.weight has values beyond what float16 holds"):
        narrow(tensors, NAMES, "f16")
    narrow(tensors, NAMES, "int8")
