"""Families: how a model is found by its type, taken apart, and put together again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, LlamaConfig

from chainfed.toolchain.families import MissingWeightError, UnsupportedModelError, family_for, supported_model_types
from chainfed.toolchain.families import registry as registry_module

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}


def test_dimensions_come_from_the_configuration() -> None:
    family = family_for(BertConfig(**SIZES))
    assert (family.num_layers, family.hidden_size, family.vocab_size, family.max_seq_len) == (2, 16, 40, 12)
    assert family.default_pooling == "mean"
    assert family.layer_shapes["attention.self.query.weight"] == (16, 16)
    assert family.layer_shapes["intermediate.dense.weight"] == (24, 16)
    assert family.embedding_shapes["word_embeddings.weight"] == (40, 16)


def test_modules_take_no_memory_and_the_configuration_is_not_changed() -> None:
    config = BertConfig(**SIZES, attn_implementation="sdpa")
    family: Any = family_for(config)
    assert all(parameter.is_meta for parameter in family._layer.parameters())
    assert family.config._attn_implementation == "eager"
    assert config._attn_implementation == "sdpa"


@pytest.mark.parametrize("model", [BertModel, BertForSequenceClassification], ids=["bare", "under bert."])
def test_embeddings_and_layers_make_up_the_model(model: Any) -> None:
    torch.manual_seed(0)
    config = BertConfig(**SIZES)
    whole = model(config).eval()
    weights = whole.state_dict()
    family = family_for(config)
    ids = torch.randint(40, (3, 7))
    mask = (torch.arange(7) < torch.tensor([7, 4, 1])[:, None]).float()
    h = family.embed(_taken(weights, family.embedding_keys(weights)), ids, mask)
    for index in range(family.num_layers):
        h = family.layer(_taken(weights, family.layer_keys(index, weights)), h, mask)
    encoder = getattr(whole, "bert", whole)
    expected = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(h[real], expected[real], atol=1e-6, rtol=1e-6)


def test_early_checkpoints_spell_layer_norms_otherwise() -> None:
    family = family_for(BertConfig(**SIZES))
    keys = {f"bert.embeddings.{name}" for name in family.embedding_shapes}
    early = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta") for key in keys
    }
    assert family.embedding_keys(early)["LayerNorm.bias"] == "bert.embeddings.LayerNorm.beta"


def test_a_missing_tensor_is_named() -> None:
    family = family_for(BertConfig(**SIZES))
    keys = set(BertModel(family.config).state_dict()) - {"encoder.layer.1.output.dense.bias"}
    family.layer_keys(0, keys)
    with pytest.raises(MissingWeightError, match=r"no tensor 'encoder\.layer\.1\.output\.dense\.bias'"):
        family.layer_keys(1, keys)
    with pytest.raises(IndexError):
        family.layer_keys(2, keys)


def test_unsupported_models_are_refused() -> None:
    assert supported_model_types() == ["bert"]
    with pytest.raises(UnsupportedModelError, match="type 'llama' are not supported; supported are: bert"):
        family_for(LlamaConfig())
    with pytest.raises(ValueError, match="decoder"):
        family_for(BertConfig(**SIZES, is_decoder=True))


def test_other_packages_add_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of the group, named by the model type, makes the family."""

    class Point:
        name = "llama"

        def load(self) -> Any:
            return lambda config: ("a family of", config.model_type)

    def points(group: str, name: str | None = None) -> list[Point]:
        assert group == "chainfed.families"
        return [Point()] if name in (None, "llama") else []

    monkeypatch.setattr(registry_module, "entry_points", points)
    assert supported_model_types() == ["bert", "llama"]
    assert family_for(LlamaConfig()) == ("a family of", "llama")


def _taken(weights: Any, keys: dict[str, str]) -> dict[str, torch.Tensor]:
    return {name: weights[key] for name, key in keys.items()}
