"""Families: how a model is found by its type, taken apart, and put together again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DistilBertConfig,
    ElectraConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from chainfed.toolchain.families import MissingWeightError, UnsupportedModelError, family_for, supported_model_types
from chainfed.toolchain.families import registry as registry_module
from tests.toolchain.family_models import SCALED_ROPE

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 12,
}


DECODER_SIZES: dict[str, Any] = SIZES | {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
CONFIGURATIONS = {
    "bert": BertConfig(**SIZES),
    "distilbert": DistilBertConfig(**SIZES),
    "electra": ElectraConfig(**SIZES, embedding_size=8),
    "electra, as wide": ElectraConfig(**SIZES, embedding_size=16),
    "roberta": RobertaConfig(**SIZES),
    "xlm-roberta": XLMRobertaConfig(**SIZES),
    "modernbert": ModernBertConfig(
        **{name: value for name, value in DECODER_SIZES.items() if name != "num_key_value_heads"},
        local_attention=4,
        global_attn_every_n_layers=3,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "llama 2": LlamaConfig(**DECODER_SIZES),
    "llama 3": LlamaConfig(**DECODER_SIZES, rope_parameters=SCALED_ROPE),
    "mistral": MistralConfig(**DECODER_SIZES, sliding_window=3),
    "mistral, no window": MistralConfig(**DECODER_SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**DECODER_SIZES),
    "qwen2, upper half local": Qwen2Config(
        **DECODER_SIZES, use_sliding_window=True, sliding_window=3, max_window_layers=2
    ),
    "qwen3": Qwen3Config(**DECODER_SIZES, head_dim=8),
    "gemma2": Gemma2Config(**DECODER_SIZES, head_dim=8, sliding_window=3, layer_types=ALTERNATING),
    "gemma3": Gemma3TextConfig(**DECODER_SIZES, head_dim=8, sliding_window=3, layer_types=ALTERNATING),
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


@pytest.mark.parametrize("model", [AutoModel, AutoModelForSequenceClassification], ids=["bare", "under its root"])
@pytest.mark.parametrize("config", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_embeddings_layers_and_output_make_up_the_model(config: Any, model: Any) -> None:
    _assert_made_up(config, model, family_for)


def test_layers_of_different_kinds_differ_in_tensors_alone() -> None:
    family = family_for(CONFIGURATIONS["gemma3"])
    local, everywhere = family.layer_constants(0), family.layer_constants(1)
    assert local.keys() == everywhere.keys()
    assert float(local["positions.reach"]) == 2.0
    assert float(everywhere["positions.reach"]) > 1e6
    assert not torch.equal(local["positions.inv_freq"], everywhere["positions.inv_freq"])


def test_positions_that_follow_the_length_of_a_text_are_refused() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(ValueError, match="'dynamic' depend on the length"):
        family_for(LlamaConfig(**DECODER_SIZES, rope_parameters=rope))


def test_roberta_has_no_position_for_padding_and_what_comes_before() -> None:
    config = RobertaConfig(**SIZES, pad_token_id=1)
    assert family_for(config).max_seq_len == 10


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
    assert {"bert", "distilbert", "llama", "modernbert"} <= set(supported_model_types())
    with pytest.raises(UnsupportedModelError, match="type 'gpt2' are not supported; supported are: bert, distilbert,"):
        family_for(GPT2Config())
    with pytest.raises(ValueError, match="decoder"):
        family_for(BertConfig(**SIZES, is_decoder=True))


def test_other_packages_add_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry point of the group, named by the model type, makes the family."""

    class Point:
        name = "gpt2"

        def load(self) -> Any:
            return lambda config: ("a family of", config.model_type)

    def points(group: str, name: str | None = None) -> list[Point]:
        assert group == "chainfed.families"
        return [Point()] if name in (None, "gpt2") else []

    monkeypatch.setattr(registry_module, "entry_points", points)
    assert "gpt2" in supported_model_types()
    assert family_for(GPT2Config()) == ("a family of", "gpt2")


def test_the_guides_example_is_a_family() -> None:
    """The class in docs/families.md, run as it stands there, against transformers' own forward pass."""
    guide = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    defined: dict[str, Any] = {}
    exec(code, defined)
    _assert_made_up(Olmo2Config(**DECODER_SIZES), AutoModel, defined["Olmo2Family"])


def _assert_made_up(config: Any, model: Any, make_family: Any) -> None:
    """Programs' functions and the reference's modules, both against transformers' own forward pass of the model."""
    torch.manual_seed(0)
    whole = model.from_config(config).eval()
    weights = whole.state_dict()
    for name in weights:
        if "norm" in name.lower():
            weights[name] += torch.randn_like(weights[name]) * 0.1  # fresh norms are all alike
    family = make_family(config)
    mask = (torch.arange(9) < torch.tensor([9, 4, 1])[:, None]).float()
    ids = torch.where(mask > 0, torch.randint(3, 40, (3, 9)), config.pad_token_id)
    with torch.no_grad():
        h = expected = family.embed(_taken(weights, family.embedding_keys(weights)), ids, mask)
        for index in range(family.num_layers):
            layer = _taken(weights, family.layer_keys(index, weights)) | dict(family.layer_constants(index))
            assert {name: tuple(tensor.shape) for name, tensor in layer.items()} == dict(family.layer_shapes)
            reference = family.reference_layer()
            reference.load(layer)
            h, expected = family.layer(layer, h, mask), reference(expected, mask)
        output = _taken(weights, family.output_keys(weights))
        reference = family.reference_output()
        reference.load(output)
        h, expected = family.finish(output, h), reference(expected)
        encoder = getattr(whole, whole.base_model_prefix, whole)
        hidden = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(h[real], hidden[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(expected[real], hidden[real], atol=1e-5, rtol=1e-5)
    assert len(encoder.get_submodule(family.layers_path)) == family.num_layers


def _taken(weights: Any, keys: dict[str, str]) -> dict[str, torch.Tensor]:
    return {name: weights[key] for name, key in keys.items()}
