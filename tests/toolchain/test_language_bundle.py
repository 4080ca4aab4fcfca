"""A language model from a Hugging Face folder to its programs: against eager, and against transformers' own model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from chainfed.core import cli
from chainfed.core.errors import BadInputError, ModelError
from chainfed.core.manifest import Bundle
from chainfed.core.passages import read_passages
from chainfed.core.tensors import encode
from chainfed.runtime.language_data import NO_TARGET, encode_passages
from chainfed.runtime.language_model import continue_greedily, predict_targets
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings
from chainfed.toolchain.merge import merge_bundle
from chainfed.toolchain.model_state import read_model_state
from chainfed.toolchain.verify import verify_bundle
from tests.toolchain.language_oracle import greedy, load, loss_and_hits
from tests.toolchain.model_states import random_state


def test_every_program_agrees_with_eager(tiny_language_bundle: Bundle, tiny_passages: Any) -> None:
    for data in (None, tiny_passages.test):
        verification = verify_bundle(tiny_language_bundle, data)
        errors = {name: report.max_error for name, report in verification.programs.items()}
        assert set(errors) == {"embed", "block", "score", "next", "window_q1", "window_q2"}
        assert max(errors.values()) < 2e-5, errors


def test_with_fresh_adapters_the_programs_are_the_model(
    tiny_language_bundle: Bundle, tiny_language_model: Path, tiny_passages: Any
) -> None:
    bundle = tiny_language_bundle
    rows = encode_passages(read_passages(tiny_passages.test), bundle.manifest, bundle.path("tokenizer.json"))
    found = predict_targets(bundle, read_model_state(bundle, None), rows)
    losses, hits = loss_and_hits(load(tiny_language_model), rows)
    assert found.targets == int((rows.labels != NO_TARGET).sum()) > bundle.manifest.task.max_target_tokens
    assert found.loss_sum == pytest.approx(losses, rel=1e-5)
    assert found.correct == hits


def test_the_greedy_continuation_is_that_of_transformers(
    tiny_language_bundle: Bundle, tiny_language_model: Path
) -> None:
    state = read_model_state(tiny_language_bundle, None)
    assert list(continue_greedily(tiny_language_bundle, state, [2, 20, 30], 10)) == greedy(
        load(tiny_language_model), [2, 20, 30], 10
    )
    with pytest.raises(BadInputError, match="3 tokens and 14 more do not fit"):
        list(continue_greedily(tiny_language_bundle, state, [2, 20, 30], 14))


@pytest.mark.slow
def test_a_real_model_continues_token_for_token(shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "stories260k"
    sizes: dict[str, Any] = {"seq_len": 64, "batch_size": 1, "adapter_dim": 8, "windows": (1, 2)}
    settings = ExportSettings(str(model), (), tmp_path / "bundle", "language_modelling", **sizes)
    bundle = export_bundle(settings)
    found = list(continue_greedily(bundle, read_model_state(bundle, None), [1], 63))
    assert found[:7] == [403, 407, 261, 378, 432, 383, 286]
    assert found == greedy(load(model), [1], 63)
    assert verify_bundle(bundle).ok


def test_a_tied_head_is_the_embeddings_and_no_file_of_its_own(tiny_language_bundle: Bundle) -> None:
    manifest = tiny_language_bundle.manifest
    assert manifest.model.language_head is not None
    assert manifest.model.language_head.file == "weights/embeddings.safetensors"
    assert "weights/lm_head.safetensors" not in manifest.files
    assert manifest.defaults.warmup_rounds == 0
    assert set(manifest.state_shapes()) == {f"adapters.{layer}.{part}" for layer in range(3) for part in ("down", "up")}


def test_the_merged_folder_generates_what_the_programs_do(
    tiny_language_bundle: Bundle, tmp_path: Path, load_merged: Any
) -> None:
    state = random_state(tiny_language_bundle.manifest.state_shapes())
    path = tmp_path / "adapters.safetensors"
    path.write_bytes(encode(state))
    tokenizer, model = load_merged(merge_bundle(tiny_language_bundle, path, tmp_path / "merged"))
    given = tokenizer("the cat saw", return_tensors="pt").input_ids
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for use_cache in (True, False):
        out = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=8,
            eos_token_id=None,
            use_cache=use_cache,
        )
        expected = list(continue_greedily(tiny_language_bundle, state, given[0].tolist(), 8))
        assert out[0, given.shape[1] :].tolist() == expected
    assert expected != list(
        continue_greedily(tiny_language_bundle, read_model_state(tiny_language_bundle, None), given[0].tolist(), 8)
    )


def untied(tiny_language_model: Path, folder: Path, with_head: bool) -> Path:
    config = transformers.AutoConfig.from_pretrained(tiny_language_model)
    config.tie_word_embeddings = False
    make = transformers.AutoModelForCausalLM if with_head else transformers.AutoModel
    make.from_config(config).save_pretrained(folder)
    return folder


def test_a_head_of_its_own_and_no_tokenizer(tiny_language_model: Path, tmp_path: Path) -> None:
    model = untied(tiny_language_model, tmp_path / "model", with_head=True)
    sizes: dict[str, Any] = {"seq_len": 16, "batch_size": 4, "adapter_dim": 8, "windows": (1,), "max_target_tokens": 6}
    bundle = export_bundle(ExportSettings(str(model), (), tmp_path / "bundle", "language_modelling", **sizes))
    assert "weights/lm_head.safetensors" in bundle.manifest.weight_files(range(1))
    assert not bundle.manifest.has_tokenizer
    assert verify_bundle(bundle).ok
    state = read_model_state(bundle, None)
    assert list(continue_greedily(bundle, state, [4, 5], 6)) == greedy(load(model), [4, 5], 6)


Change = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": ("a", "b")}, "--labels and --pooling are for --task classification"),
        ({"max_target_tokens": 16}, "--max-target-tokens 16 does not fit: a row of 16 tokens has 1 to 15 positions"),
        ({"seq_len": 1}, "--seq-len 1 leaves nothing to predict"),
        ({"task": "classification"}, "--task classification needs --labels"),
        ({"task": "classification", "labels": ("a", "b"), "packing": True}, "--packing and --chat-template are for"),
        ({"chat_template": "/nowhere.jinja"}, "--chat-template /nowhere.jinja cannot be read"),
    ],
)
def test_settings_that_do_not_go_together(
    change: dict[str, Any], reason: str, tiny_language_model: Path, tmp_path: Path
) -> None:
    values: dict[str, Any] = {"labels": (), "task": "language_modelling", "seq_len": 16, "batch_size": 4} | change
    with pytest.raises(BadInputError, match=reason):
        export_bundle(ExportSettings(str(tiny_language_model), out=tmp_path / "bundle", **values))
    assert not (tmp_path / "bundle").exists()


def test_models_that_cannot_predict_tokens(tiny_model: Path, tiny_language_model: Path, tmp_path: Path) -> None:
    def export(model: Path) -> None:
        export_bundle(ExportSettings(str(model), (), tmp_path / "bundle", "language_modelling", seq_len=16))

    with pytest.raises(ModelError, match="is a bert model, which attends in both directions"):
        export(tiny_model)
    with pytest.raises(ModelError, match=r"has no language-model head.*\.\.\.ForCausalLM"):
        export(untied(tiny_language_model, tmp_path / "headless", with_head=False))


def test_a_template_of_the_tokenizer_is_used(tiny_language_model: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_language_model, tmp_path / "model"))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.content }} again {% endfor %}{% if add_generation_prompt %}{% endif %}"
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    sizes: dict[str, Any] = {"seq_len": 16, "batch_size": 4, "adapter_dim": 8, "windows": (1, 2)}
    out = tmp_path / "bundle"
    bundle = export_bundle(ExportSettings(str(model), (), out, "language_modelling", max_target_tokens=6, **sizes))
    assert bundle.manifest.task.chat is not None
    assert bundle.manifest.task.chat.between["user>assistant"] == " again "
    assert bundle.manifest.task.chat.end_of_turn == " again"


def test_generate_and_evaluate(
    tiny_language_bundle: Bundle, tiny_passages: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tiny_language_bundle.folder)
    assert cli.run(["generate", folder, "--ids", "2,20", "--tokens", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["given"], len(result["added"])) == ([2, 20], 3)
    assert cli.run(["generate", folder, "--chat", "cat", "--tokens", "2"]) == 0
    assert capsys.readouterr().out.strip()
    assert cli.run(["evaluate", folder, "--data", str(tiny_passages.test), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] > 12
    assert cli.run(["generate", folder, "--ids", "2,x"]) == 3
    assert "--ids '2,x' is no list of token ids" in " ".join(capsys.readouterr().err.split())
    assert cli.run(["generate", folder]) == 3
    assert "exactly one of --text, --chat and --ids" in " ".join(capsys.readouterr().err.split())
