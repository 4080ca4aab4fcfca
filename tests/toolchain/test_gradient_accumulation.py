"""A batch in parts: the same gradients, losses and updates as the whole batch at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chainfed.toolchain.gradient_accumulation import accumulated_gradients, rows_at_once
from chainfed.toolchain.reference import Reference
from chainfed.toolchain.steps import build_programs


@pytest.mark.parametrize(
    ("batch_size", "seq_len", "tokens", "rows"), [(8, 256, 512, 2), (6, 100, 512, 3), (7, 100, 512, 1), (4, 8, 512, 4)]
)
def test_rows_divide_the_batch_and_fit(batch_size: int, seq_len: int, tokens: int, rows: int) -> None:
    assert rows_at_once(batch_size, seq_len, tokens) == rows


def test_gradients_of_parts_add_up() -> None:
    torch.manual_seed(0)
    x, y, scale, weight = torch.randn(6, 3), torch.randn(6), torch.tensor(0.5), torch.randn(3)

    def objective(inputs: Any, trainable: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        distance = inputs["x"] @ trainable["weight"] - inputs["y"]
        return (distance * distance).sum() * inputs["scale"], {"distance": distance.sum()}

    parameters, inputs = {"weight": weight}, {"x": x, "y": y, "scale": scale}
    gradients, sums = accumulated_gradients(
        objective, parameters, inputs, batched=("x", "y"), sums=("distance",), rows=2
    )
    distance = x @ weight - y
    torch.testing.assert_close(gradients["weight"], distance @ x)
    torch.testing.assert_close(sums, {"loss": (distance**2).sum() * 0.5, "distance": distance.sum()})


@pytest.fixture(scope="module")
def in_parts(make_settings: Any, lowered: Any) -> tuple[Any, Reference]:
    """A window of two layers that takes two of four rows at a time, and its oracle."""
    settings = replace(make_settings(layers=3), tokens_at_once=16)
    return lowered(build_programs(settings)["window_q2"]), Reference(settings)


@pytest.mark.parametrize("rows", [4, 3], ids=["full batch", "partial batch"])
def test_a_program_in_parts_matches_the_reference(
    rows: int, in_parts: tuple[Any, Reference], make_inputs: Any, difference: Any
) -> None:
    program, reference = in_parts
    inputs = make_inputs(program.definition, rows=rows)
    ours, theirs = dict(inputs), dict(inputs)
    for _ in range(3):
        stepped, expected = program.run(ours), reference.run("window_q2", theirs)
        assert difference(stepped, expected) < 1e-5
        ours |= {name: tensor for name, tensor in stepped.items() if name in ours}
        theirs |= {name: tensor for name, tensor in expected.items() if name in theirs}


def test_a_layer_in_parts_matches_the_reference(
    make_settings: Any, lowered: Any, make_inputs: Any, difference: Any
) -> None:
    parts = lowered(build_programs(replace(make_settings(), tokens_at_once=8))["block"])
    inputs = make_inputs(parts.definition)
    assert difference(parts.run(inputs), Reference(make_settings()).run("block", inputs)) < 1e-5


def test_the_arena_holds_one_part_of_the_batch(
    in_parts: tuple[Any, Reference], make_settings: Any, lowered: Any
) -> None:
    program, reference = in_parts
    whole = lowered(build_programs(replace(reference.settings, tokens_at_once=32))["window_q2"])
    assert program.program.arena_bytes < whole.program.arena_bytes
