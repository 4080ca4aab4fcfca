"""Each family of decoders as a language model, from a Hugging Face folder to a bundle and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chainfed.core.manifest import Bundle
from chainfed.core.passages import read_passages
from chainfed.core.tensors import Tensors, encode
from chainfed.runtime.language_data import encode_passages
from chainfed.runtime.language_model import continue_greedily, predict_targets
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings
from chainfed.toolchain.merge import merge_bundle
from chainfed.toolchain.model_state import read_model_state
from chainfed.toolchain.verify import verify_bundle
from tests.toolchain.family_models import DECODERS, write_family_model
from tests.toolchain.language_oracle import greedy, load, loss_and_hits
from tests.toolchain.model_states import random_state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of a family with its language-model head and the tokenizer of the tiny model."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return write_family_model(request.param, tiny_model, folder, with_head=True)


@pytest.fixture(scope="module")
def language_bundle(decoder: Path) -> Bundle:
    """Its bundle for language modelling: windows of one layer and of all, fewer targets at once than a row may have."""
    sizes: dict[str, Any] = {"seq_len": 16, "batch_size": 4, "adapter_dim": 8, "windows": (1, 2)}
    out = decoder.parent / "bundle"
    return export_bundle(ExportSettings(str(decoder), (), out, "language_modelling", max_target_tokens=6, **sizes))


def test_every_program_agrees_with_eager(language_bundle: Bundle) -> None:
    verification = verify_bundle(language_bundle)
    errors = {name: report.max_error for name, report in verification.programs.items()}
    assert verification.ok
    assert max(errors.values()) < 2e-5, errors


def test_with_fresh_adapters_the_programs_are_the_model(
    language_bundle: Bundle, decoder: Path, tiny_passages: Any
) -> None:
    state = read_model_state(language_bundle, None)
    _assert_same_losses(language_bundle, state, load(decoder), tiny_passages.test)
    assert list(continue_greedily(language_bundle, state, [2, 20, 30], 8)) == greedy(load(decoder), [2, 20, 30], 8)


def test_the_merged_folder_is_what_the_programs_are(
    language_bundle: Bundle, tiny_passages: Any, tmp_path: Path, load_merged: Any
) -> None:
    state = random_state(language_bundle.manifest.state_shapes())
    path = tmp_path / "adapters.safetensors"
    path.write_bytes(encode(state))
    _, model = load_merged(merge_bundle(language_bundle, path, tmp_path / "merged"))
    _assert_same_losses(language_bundle, state, model.eval(), tiny_passages.test)


def _assert_same_losses(bundle: Bundle, state: Tensors, model: Any, passages: Path) -> None:
    rows = encode_passages(read_passages(passages), bundle.manifest, bundle.path("tokenizer.json"))
    found = predict_targets(bundle, state, rows)
    losses, hits = loss_and_hits(model, rows)
    assert found.loss_sum == pytest.approx(losses, rel=1e-5)
    assert found.correct == hits
