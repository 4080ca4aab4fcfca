"""Each family as a classifier, from a Hugging Face folder to a bundle and back: against eager and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from chainfed.core.examples import Example
from chainfed.core.manifest import Bundle
from chainfed.core.tensors import encode
from chainfed.runtime.prediction import predict
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings
from chainfed.toolchain.merge import merge_bundle
from chainfed.toolchain.verify import verify_bundle
from tests.toolchain.family_models import DECODERS, ENCODERS, write_family_model
from tests.toolchain.model_states import random_state

_QUICK = ("roberta", "modernbert", "gemma2")
_LABELS = ("animals", "machines", "plants")
_TEXTS = ("a cat and the dog", "pump", "the dog is on a tree and the cat is not on it", "dog cat dog")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, id=name, marks=() if name in _QUICK else pytest.mark.slow) for name in (*ENCODERS, *DECODERS)
    ],
)
def family_model(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a family with the tokenizer of the tiny model."""
    return write_family_model(request.param, tiny_model, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def family_bundle(family_model: Path) -> Bundle:
    """Its bundle, with windows of one layer and of all."""
    out = family_model.parent / "bundle"
    return export_bundle(
        ExportSettings(str(family_model), _LABELS, out, seq_len=12, batch_size=4, adapter_dim=8, windows=(1, 2))
    )


def test_every_program_agrees_with_eager(family_bundle: Bundle) -> None:
    verification = verify_bundle(family_bundle)
    errors = {name: report.max_error for name, report in verification.programs.items()}
    assert verification.ok
    assert max(errors.values()) < 2e-5, errors


def test_with_fresh_adapters_the_programs_are_the_model(family_bundle: Bundle, family_model: Path) -> None:
    """A fresh adapter is the identity, so a head over the chain is a head over the model's own last hidden states."""
    state = random_state(family_bundle.manifest.state_shapes())
    state |= {name: np.zeros_like(tensor) for name, tensor in state.items() if name.endswith(".up")}
    logits = predict(family_bundle, state, [Example(text, 0) for text in _TEXTS]).logits
    model = transformers.AutoModel.from_pretrained(family_model).eval()
    batch = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(family_model / "tokenizer.json"), pad_token="[PAD]"
    )(list(_TEXTS), truncation=True, max_length=12, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    features = _pooled(hidden, batch["attention_mask"], family_bundle.manifest.task.pooling).numpy()
    standardised = (features - state["statistics.1.mean"]) * state["statistics.1.rstd"]
    expected = standardised @ state["heads.1.weight"].T + state["heads.1.bias"]
    assert np.abs(logits - expected).max() < 1e-4


def test_the_merged_folder_gives_the_logits_of_the_programs(
    family_bundle: Bundle, tmp_path: Path, load_merged: Any
) -> None:
    state = random_state(family_bundle.manifest.state_shapes())
    path = tmp_path / "adapters.safetensors"
    path.write_bytes(encode(state))
    tokenizer, model = load_merged(merge_bundle(family_bundle, path, tmp_path / "merged"))
    batch = tokenizer(list(_TEXTS), truncation=True, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        logits = model(**batch).logits.numpy()
    programs = predict(family_bundle, state, [Example(text, 0) for text in _TEXTS]).logits
    assert np.abs(logits - programs).max() < 1e-4


def _pooled(hidden: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    if pooling == "last":
        return torch.stack([row[int(count) - 1] for row, count in zip(hidden, mask.sum(1), strict=True)])
    return torch.stack([row[: int(count)].mean(0) for row, count in zip(hidden, mask.sum(1), strict=True)])
