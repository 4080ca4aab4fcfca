"""The programs of language modelling as plain functions, against the eager reference with whole logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, Gemma2Config, LlamaConfig

from chainfed.toolchain import vocabulary_loss
from chainfed.toolchain.families import family_for
from chainfed.toolchain.optimizers import OptimizerSettings
from chainfed.toolchain.programs import ProgramDefinition, ProgramSettings
from chainfed.toolchain.reference import LanguageReference, reference_of
from chainfed.toolchain.steps import build_programs

_SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
_CONFIGURATIONS = {
    "llama": LlamaConfig(**_SIZES),
    "gemma2": Gemma2Config(**_SIZES, head_dim=8, query_pre_attn_scalar=8),
}
_SCALARS = {"adapter_lr": 1e-2, "global_loss_weight": 0.3, "positions.scaling": 1.0, "positions.reach": 1e9}


def make_settings(config: Any, optimizer: Any = "adamw", **changes: Any) -> ProgramSettings:
    """4 rows of 8 tokens, at most 3 targets a row."""
    values: dict[str, Any] = {"batch_size": 4, "seq_len": 8, "adapter_dim": 4, "max_target_tokens": 3} | changes
    return ProgramSettings(
        family_for(config), **values, task="language_modelling", optimizer=OptimizerSettings(optimizer)
    )


def make_inputs(program: ProgramDefinition) -> dict[str, Tensor]:
    """Random inputs in which nothing is trivial; 7 of the 12 places have a target, two of them the same place."""
    generator = torch.Generator().manual_seed(0)
    inputs = {}
    for spec in program.inputs:
        name = spec.name.split(".layer.")[-1]
        noise = torch.randn(spec.shape, generator=generator)
        if name in _SCALARS:
            inputs[spec.name] = torch.tensor(_SCALARS[name])
        elif spec.name.startswith("state."):
            inputs[spec.name] = torch.zeros(spec.shape)
        else:
            inputs[spec.name] = noise if spec.name == "h" else 0.2 * noise
    lengths = torch.tensor([8, 7, 6, 5])
    inputs["mask"] = (torch.arange(8) < lengths[:, None]).float()
    inputs["target_places"] = torch.tensor([[0, 3, 6], [0, 5, 0], [1, 1, 0], [0, 0, 0]])
    inputs["targets"] = torch.randint(50, (4, 3), generator=generator)
    inputs["target_weights"] = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 0], [0, 0, 0]]) / 7.0
    inputs["places"] = torch.tensor([7, 6, 5, 4])
    return {spec.name: inputs[spec.name] for spec in program.inputs}


@pytest.mark.parametrize("tokens_at_once", [512, 16], ids=["whole batch", "two rows at once"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("model", list(_CONFIGURATIONS))
def test_programs_match_the_reference(model: str, optimizer: str, tokens_at_once: int, difference: Any) -> None:
    settings = make_settings(_CONFIGURATIONS[model], optimizer, windows=(1, 2, 3), tokens_at_once=tokens_at_once)
    reference = reference_of(settings)
    assert isinstance(reference, LanguageReference)
    programs = build_programs(settings)
    assert list(programs) == ["embed", "block", "score", "next", "window_q1", "window_q2", "window_q3"]
    for name in ("score", "next", "window_q1", "window_q2", "window_q3"):
        inputs = make_inputs(programs[name])
        values = programs[name].function(*inputs.values())
        outputs = {spec.name: value for spec, value in zip(programs[name].outputs, values, strict=True)}
        assert difference(outputs, reference.run(name, inputs)) < 1e-5, name


def test_a_lowered_window_walks_the_vocabulary_in_a_loop_within_the_loop_over_rows(
    lowered: Any, difference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_loss, "CHUNK_ROWS", 20)
    monkeypatch.setattr(vocabulary_loss, "_TILE", 5)
    assert vocabulary_loss.chunk_rows(50) == 10
    settings = make_settings(_CONFIGURATIONS["llama"], tokens_at_once=16, windows=(1,))
    program = lowered(build_programs(settings)["window_q1"])
    inputs = make_inputs(program.definition)
    assert difference(program.run(inputs), reference_of(settings).run("window_q1", inputs)) < 1e-5


def test_a_window_has_adapters_and_no_trained_head() -> None:
    program = build_programs(make_settings(_CONFIGURATIONS["llama"]))["window_q1"]
    names = [spec.name for spec in program.inputs]
    assert [name for name in names if name.startswith("trainable.")] == [
        "trainable.window.0.down",
        "trainable.window.0.up",
    ]
    assert (
        names[-10:]
        == [
            *("aux.down", "aux.up", "h", "mask", "output.weight", "lm_head.weight"),
            *("target_places", "targets", "target_weights", "adapter_lr", "global_loss_weight"),
        ][-10:]
    )
    assert not [name for name in names if "head." in name and name != "lm_head.weight"]


@pytest.mark.parametrize(
    ("config", "change", "reason"),
    [
        (LlamaConfig(**_SIZES), {"max_target_tokens": 0}, "max_target_tokens must lie between 1 and 7"),
        (LlamaConfig(**_SIZES), {"max_target_tokens": 8}, "max_target_tokens must lie between 1 and 7"),
        (BertConfig(num_hidden_layers=3), {}, "attends in both directions"),
    ],
)
def test_settings_that_no_program_can_be_made_from(config: Any, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_settings(config, **change)
