"""The lowered programs on the real ExecuTorch runtime against plain eager PyTorch, on a tiny encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from chainfed.toolchain.lowering import lower
from chainfed.toolchain.programs import Named, ProgramDefinition, ProgramSettings, TensorSpec
from chainfed.toolchain.reference import Reference
from chainfed.toolchain.steps import build_programs

TOLERANCE = 1e-5
SLOW = pytest.mark.slow

MAX_GRAD_NORM = 0.05

# Optimiser, window size, layers of the model: a window of all layers has no auxiliary branch.
WINDOWS = [
    pytest.param(("adamw", 1, 2), id="adamw-q1"),
    pytest.param(("sgd", 2, 2), id="sgd-q2-of-2"),
    pytest.param(("sgd", 1, 3), id="sgd-q1", marks=SLOW),
    pytest.param(("adamw", 2, 3), id="adamw-q2", marks=SLOW),
    pytest.param(("sgd", 3, 4), id="sgd-q3", marks=SLOW),
    pytest.param(("adamw", 3, 3), id="adamw-q3-of-3", marks=SLOW),
]


def _has_auxiliary_branch(case: tuple[str, int, int]) -> bool:
    _, size, layers = case
    return size < layers


@pytest.fixture(scope="module")
def settings(make_settings: Callable[..., ProgramSettings]) -> ProgramSettings:
    return make_settings("adamw")


@pytest.fixture(scope="module")
def small(settings: ProgramSettings, lowered: Callable[..., Any]) -> dict[str, Any]:
    """The programs without a backward pass, and the head's."""
    definitions = build_programs(settings)
    return {name: lowered(definitions[name]) for name in ("embed", "block", "pool", "head", "score")}


@pytest.fixture(scope="module", params=WINDOWS)
def window(request: pytest.FixtureRequest, make_settings: Any, lowered: Any) -> tuple[Any, Reference]:
    """A training step and its oracle, for one optimiser and one window size."""
    optimizer, size, layers = request.param
    settings = make_settings(optimizer, layers=layers, max_grad_norm=MAX_GRAD_NORM)
    return lowered(build_programs(settings)[f"window_q{size}"]), Reference(settings)


@pytest.mark.parametrize("name", ["embed", "block", "pool", "head", "score"])
def test_small_programs_match_the_reference(
    name: str, small: dict[str, Any], settings: ProgramSettings, make_inputs: Any, difference: Any
) -> None:
    reference = Reference(settings)
    for seed in range(3):
        inputs = make_inputs(small[name].definition, seed)
        assert difference(small[name].run(inputs), reference.run(name, inputs)) < TOLERANCE


def test_score_ignores_rows_without_weight(small: dict[str, Any], make_inputs: Any) -> None:
    inputs = make_inputs(small["score"].definition, rows=2) | {"sample_weights": torch.tensor([1.0, 1.0, 0.0, 0.0])}
    scored = small["score"].run(inputs)
    changed = small["score"].run(inputs | {"h": torch.cat([inputs["h"][:2], -inputs["h"][2:]])})
    assert scored["loss_sum"] == changed["loss_sum"]
    assert scored["correct"] == changed["correct"] <= 2


def test_fresh_adapters_leave_the_model_as_it_is(small: dict[str, Any], settings: ProgramSettings) -> None:
    """embed and L times block equal transformers' own model when every up-projection is zero."""
    from transformers import BertModel

    torch.manual_seed(0)
    model = BertModel(settings.family.config, add_pooling_layer=False).eval()
    weights = model.state_dict()
    ids = torch.randint(50, (4, 8))
    mask = (torch.arange(8) < torch.tensor([8, 5, 1, 7])[:, None]).float()
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state

    keys = settings.family.embedding_keys(weights.keys())
    h = small["embed"].run(_with("embeddings.", keys, weights) | {"input_ids": ids, "mask": mask})["h"]
    adapter = {"adapter.down": torch.randn(4, 32), "adapter.up": torch.zeros(4, 32)}
    for layer in range(settings.family.num_layers):
        keys = settings.family.layer_keys(layer, weights.keys())
        h = small["block"].run(_with("layer.", keys, weights) | adapter | {"h": h, "mask": mask})["h"]
    real = mask.bool()
    assert float((h[real] - expected[real]).abs().max()) < TOLERANCE


def test_window_matches_the_reference_over_several_steps(
    window: tuple[Any, Reference], make_inputs: Any, difference: Any
) -> None:
    program, reference = window
    inputs = make_inputs(program.definition)
    ours, theirs = dict(inputs), dict(inputs)
    for _ in range(4):
        stepped, expected = program.run(ours), reference.run(program.definition.name, theirs)
        assert difference(stepped, expected) < TOLERANCE
        assert difference(_trainable(stepped), _trainable(ours)) > 1e-4
        ours |= {name: tensor for name, tensor in stepped.items() if name in ours}
        theirs |= {name: tensor for name, tensor in expected.items() if name in theirs}


def test_window_with_a_partial_batch(window: tuple[Any, Reference], make_inputs: Any, difference: Any) -> None:
    program, reference = window
    inputs = make_inputs(program.definition, rows=3)
    stepped = program.run(inputs)
    assert difference(stepped, reference.run(program.definition.name, inputs)) < TOLERANCE
    garbage = inputs["h"].clone()
    garbage[3] = 50 * torch.randn(garbage[3].shape)
    again = program.run(inputs | {"h": garbage, "labels": torch.where(inputs["labels"] < 0, 2, inputs["labels"])})
    assert difference(again, stepped) < 1e-6


def test_window_in_the_final_stage(window: tuple[Any, Reference], make_inputs: Any, difference: Any) -> None:
    """The final head trains in the local head's place; the global branch is switched off."""
    program, reference = window
    inputs = make_inputs(program.definition)
    for name in ("aux.down", "aux.up", "global_loss_weight", "final_head_lr"):
        if name in inputs:
            inputs[name] = torch.zeros_like(inputs[name])
    stepped = program.run(inputs)
    assert difference(stepped, reference.run(program.definition.name, inputs)) < TOLERANCE
    assert stepped["loss"] == stepped["local_loss"]
    for part in ("weight", "bias"):
        name = f"trainable.final_head.{part}"
        assert torch.equal(stepped[name], inputs[name])


@pytest.mark.parametrize("window", [case for case in WINDOWS if _has_auxiliary_branch(*case.values)], indirect=True)
def test_window_pads_the_auxiliary_branch_with_zeros(
    window: tuple[Any, Reference], make_inputs: Any, difference: Any
) -> None:
    """A zero adapter in the stack is the identity: the reference is given the stack without it."""
    program, reference = window
    inputs = make_inputs(program.definition)
    shorter = dict(inputs)
    for name in ("aux.down", "aux.up"):
        inputs[name][-1] = 0
        shorter[name] = inputs[name][:-1]
    assert difference(program.run(inputs), reference.run(program.definition.name, shorter)) < TOLERANCE


@pytest.mark.parametrize("clipped", [False, True], ids=["not clipped", "clipped"])
def test_window_clips_by_global_norm(
    clipped: bool, window: tuple[Any, Reference], make_inputs: Any, difference: Any
) -> None:
    """How far features are scaled decides on which side of the bound the gradients' norm lies."""
    program, reference = window
    inputs = make_inputs(program.definition)
    if not clipped:
        inputs |= {name: tensor * 0.01 for name, tensor in inputs.items() if name.endswith("rstd")}
        inputs |= {name: torch.full((4,), 0.001) for name in ("sample_weights",)}
    expected = reference.run(program.definition.name, inputs)
    free = replace(reference.settings, optimizer=replace(reference.settings.optimizer, max_grad_norm=None))
    unclipped = Reference(free).run(program.definition.name, inputs)
    assert (difference(expected, unclipped) > 1e-4) == clipped
    assert difference(program.run(inputs), expected) < TOLERANCE


def test_window_without_a_gradient_stays_finite(window: tuple[Any, Reference], make_inputs: Any) -> None:
    program, _ = window
    inputs = make_inputs(program.definition, rows=1)
    nothing = torch.zeros(4)
    stepped = program.run(inputs | {"sample_weights": nothing})
    assert all(bool(tensor.isfinite().all()) for tensor in stepped.values())


def test_the_same_definition_gives_the_same_bytes(settings: ProgramSettings, small: dict[str, Any]) -> None:
    again = lower(build_programs(settings)["block"])
    assert hashlib.sha256(again.data).hexdigest() == hashlib.sha256(small["block"].program.data).hexdigest()
    assert again.arena_bytes == small["block"].program.arena_bytes


def test_the_arena_holds_at_least_the_outputs(small: dict[str, Any]) -> None:
    for program in small.values():
        assert program.program.arena_bytes >= sum(spec.nbytes for spec in program.definition.outputs)


def _with(prefix: str, keys: dict[str, str], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: weights[key] for name, key in keys.items()}


def _trainable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.startswith("trainable.")}


def _joined_and_doubled(inputs: Named) -> Named:
    return {"out": torch.cat(list(inputs.values()), dim=1) * 2.0}


def test_more_tensors_are_joined_than_xnnpack_joins_at_once(lowered: Any, difference: Any) -> None:
    parts = tuple(TensorSpec(f"part{index}", (2, 3)) for index in range(7))
    program = lowered(ProgramDefinition("joined", parts, (TensorSpec("out", (2, 21)),), _joined_and_doubled))
    inputs = {spec.name: torch.randn(spec.shape) for spec in parts}
    assert difference(program.run(inputs), _joined_and_doubled(inputs)) == 0.0
