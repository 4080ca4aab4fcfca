"""The programs as plain functions: their tensor lists, and their values against the eager reference."""

from __future__ import annotations

import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chainfed.core.tensors import NO_LABEL
from chainfed.runtime.feeds import program_tensor
from chainfed.toolchain.programs import Named, TensorSpec
from chainfed.toolchain.reference import Reference
from chainfed.toolchain.steps import build_programs

LAYER_TENSORS = 16


def test_a_bundle_has_these_programs(make_settings: Any) -> None:
    names = ["embed", "block", "pool", "head", "score", "window_q1", "window_q2", "window_q3"]
    assert list(build_programs(make_settings())) == names
    assert list(build_programs(replace(make_settings(), windows=(2,))))[5:] == ["window_q2"]


def test_tensors_of_a_window(make_settings: Any) -> None:
    program = build_programs(make_settings("adamw"))["window_q2"]
    inputs = [spec.name for spec in program.inputs]
    trainable = [f"window.{index}.{part}" for index in (0, 1) for part in ("down", "up")]
    trainable += [f"{head}.{part}" for head in ("local_head", "final_head") for part in ("weight", "bias")]
    state = ["state.step", *(f"state.{moment}.{name}" for moment in "mv" for name in trainable)]
    updated = [*(f"trainable.{name}" for name in trainable), *state]
    assert inputs[: len(updated)] == updated
    assert [spec.name for spec in program.outputs] == [*updated, "loss", "local_loss", "global_loss", "correct"]
    frozen = inputs[len(updated) : len(updated) + 2 * LAYER_TENSORS]
    assert all(name.startswith(("window.0.layer.", "window.1.layer.")) for name in frozen)
    assert inputs[len(updated) + len(frozen) :] == [
        *("aux.down", "aux.up", "local_mean", "local_rstd", "final_mean", "final_rstd"),
        *("h", "mask", "labels", "sample_weights"),
        *("adapter_lr", "head_lr", "final_head_lr", "global_loss_weight"),
    ]
    shapes = {spec.name: spec for spec in program.inputs}
    assert shapes["aux.down"] == TensorSpec("aux.down", (1, 4, 32))
    assert shapes["labels"] == TensorSpec("labels", (4,), "int64")
    assert shapes["h"].nbytes == 4 * 8 * 32 * 4
    assert shapes["state.step"].shape == ()


def test_sgd_has_no_state_and_a_window_of_all_layers_no_auxiliary_branch(make_settings: Any) -> None:
    program = build_programs(make_settings("sgd"))["window_q3"]
    assert not [spec.name for spec in program.inputs if spec.name.startswith(("state.", "aux."))]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("rows", [4, 3], ids=["full batch", "partial batch"])
def test_programs_match_the_reference(
    optimizer: str, pooling: str, rows: int, make_settings: Any, make_inputs: Any, difference: Any
) -> None:
    settings = make_settings(optimizer, pooling=pooling)
    reference = Reference(settings)
    for seed, (name, program) in enumerate(build_programs(settings).items()):
        inputs = make_inputs(program, seed, rows)
        actual = program.compute(inputs)
        assert list(actual) == [spec.name for spec in program.outputs]
        assert difference(actual, reference.run(name, inputs)) < 1e-5, name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["head", "score", "window_q2", "window_q3"])
def test_rows_that_stand_for_no_label_change_nothing(
    name: str, optimizer: str, make_settings: Any, make_inputs: Any, difference: Any
) -> None:
    """Three steps of the reference with heads of 3 rows are those of the program with heads of 8."""
    settings = make_settings(optimizer)
    program, reference = build_programs(settings)[name], Reference(settings)
    manifest: Any = SimpleNamespace(num_labels=settings.num_labels)

    def cut(tensors: Named) -> dict[str, torch.Tensor]:
        """Without the rows that stand for no label."""
        heads = {name: tensor[: settings.num_labels] for name, tensor in tensors.items() if "head." in name}
        logits = {name: tensor[:, : settings.num_labels] for name, tensor in tensors.items() if name == "logits"}
        return {**tensors, **heads, **logits}

    wide = make_inputs(program)
    narrow = cut(wide)
    heads = [name for name in wide if "head." in name and not name.startswith("state.")]
    wide |= {name: program_tensor(manifest, {"heads.0.any": narrow[name]}, "heads.0.any") for name in heads}
    for _ in range(3):
        actual, expected = program.compute(wide), reference.run(name, narrow)
        assert difference(cut(actual), expected) < 1e-5
        wide |= {name: tensor for name, tensor in actual.items() if name in wide}
        narrow |= {name: tensor for name, tensor in expected.items() if name in narrow}
    for name in heads:
        assert wide[name].shape[0] == 8 > settings.num_labels
        assert (wide[name][settings.num_labels :] == (NO_LABEL if name.endswith("bias") else 0.0)).all()


def test_the_global_branch_sees_the_adapters_after_the_window(make_settings: Any, make_inputs: Any) -> None:
    program = build_programs(make_settings())["window_q1"]
    inputs = make_inputs(program)
    first = program.compute(inputs)
    other = program.compute(inputs | {"aux.up": 2 * inputs["aux.up"]})
    assert first["local_loss"] == other["local_loss"]
    assert first["global_loss"] != other["global_loss"]
    weighted = first["local_loss"] + inputs["global_loss_weight"] * first["global_loss"]
    assert torch.equal(first["loss"], weighted)


def test_a_learning_rate_of_zero_freezes_its_group(make_settings: Any, make_inputs: Any) -> None:
    program = build_programs(make_settings())["window_q2"]
    groups = {"adapter_lr": "trainable.window", "head_lr": "trainable.local_head", "final_head_lr": "trainable.final"}
    for rate, prefix in groups.items():
        inputs = make_inputs(program) | {rate: torch.tensor(0.0)}
        updated = program.compute(inputs)
        for name in (spec.name for spec in program.inputs if spec.name.startswith("trainable.")):
            assert torch.equal(updated[name], inputs[name]) == name.startswith(prefix), name


def test_definitions_can_be_sent_to_another_process(make_settings: Any, make_inputs: Any, difference: Any) -> None:
    for program in build_programs(make_settings(layers=2)).values():
        received = pickle.loads(pickle.dumps(program))
        inputs = make_inputs(program)
        assert difference(received.compute(inputs), program.compute(inputs)) == 0.0


def test_a_row_without_tokens_pools_to_zero(make_settings: Any) -> None:
    program = build_programs(make_settings())["pool"]
    features = program.compute({"h": torch.ones(4, 8, 32), "mask": torch.zeros(4, 8)})["features"]
    assert torch.equal(features, torch.zeros(4, 32))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seq_len": 17}, "seq_len must lie between 1 and 16"),
        ({"windows": (4,)}, "window sizes must lie between 1 and 3"),
        ({"num_labels": 1}, "num_labels must be at least 2"),
        ({"pooling": "max"}, "pooling 'max' is unknown"),
    ],
)
def test_settings_that_no_program_can_be_made_from(change: dict[str, Any], reason: str, make_settings: Any) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(make_settings(), **change)
