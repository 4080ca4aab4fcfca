"""A bundle's programs on the runtime: by names, checked, and the whole model as transformers computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from chainfed.core.errors import BundleError, NotFiniteError
from chainfed.core.examples import Example
from chainfed.core.manifest import Bundle
from chainfed.core.tensors import decode
from chainfed.runtime import whole_model
from chainfed.runtime.prediction import predict
from chainfed.runtime.program import Program
from chainfed.runtime.tokenization import Tokenizer


def pool_program(bundle: Bundle) -> Program:
    entry = bundle.manifest.programs["pool"]
    return Program(bundle.path(entry.file), entry)


def pool_inputs(bundle: Bundle, value: float) -> dict[str, torch.Tensor]:
    shapes = bundle.manifest.shapes
    h = torch.full((shapes.batch_size, shapes.seq_len, bundle.manifest.model.hidden_size), value)
    return {"mask": torch.ones(h.shape[:2]), "h": h}


def test_inputs_and_outputs_go_by_names(tiny_bundle: Bundle) -> None:
    with pool_program(tiny_bundle) as program:
        outputs = program.run(pool_inputs(tiny_bundle, 3.0))
        assert outputs.keys() == {"features"}
        assert torch.allclose(outputs["features"], torch.tensor(3.0))


def test_views_are_overwritten_by_the_next_run_and_clones_are_not(tiny_bundle: Bundle) -> None:
    with pool_program(tiny_bundle) as program:
        clone = program.run(pool_inputs(tiny_bundle, 1.0))["features"]
        view = program.run(pool_inputs(tiny_bundle, 2.0), clone_outputs=False)["features"]
        program.run(pool_inputs(tiny_bundle, 4.0))
        assert clone.unique().tolist() == [1.0]
        assert view.unique().tolist() == [4.0]


def test_what_does_not_fit_is_named(tiny_bundle: Bundle) -> None:
    good = pool_inputs(tiny_bundle, 1.0)
    with pool_program(tiny_bundle) as program:
        for wrong, words in (
            ({"h": good["h"]}, "inputs missing: mask"),
            (good | {"extra": good["h"]}, "unknown: extra"),
            ({"h": good["h"], "musk": good["mask"]}, "input mask is missing"),
            (good | {"h": good["h"][:1]}, r"input h is float32 \[1,"),
            (good | {"mask": good["mask"].long()}, "input mask is int64"),
        ):
            with pytest.raises(BundleError, match=words):
                program.run(wrong)
        with pytest.raises(ValueError, match="not contiguous"):
            program.run(good | {"h": good["h"].transpose(0, 2).contiguous().transpose(0, 2)})
    with pytest.raises(ValueError, match="closed"):
        program.run(good)


def test_a_damaged_or_foreign_program_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    entry = tiny_bundle.manifest.programs["pool"]
    data = tiny_bundle.path(entry.file).read_bytes()
    path = tmp_path / "pool.pte"
    with pytest.raises(BundleError, match="does not exist"):
        Program(path, entry)
    for damaged in (b"", data[:100], b"x" * 500):
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match="no program that ExecuTorch can load"):
            Program(path, entry)
    path.write_bytes(data)
    with pytest.raises(BundleError, match="do not belong together"):
        Program(path, tiny_bundle.manifest.programs["score"])


TEXTS = ["cat dog", "bread near the soup", "engine", "", "old big pump " * 9, "hen", "the near cat", "a", "horse rice"]


def reference_logits(model: Any, bundle: Bundle, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """transformers' own layers, eager, one text at a time and so without padding."""
    tokenizer = Tokenizer(
        bundle.path("tokenizer.json"), bundle.manifest.tokenizer.pad_token_id, bundle.manifest.shapes.seq_len
    )
    rows = []
    for text in TEXTS:
        tokens = tokenizer([text])
        with torch.no_grad():
            h = model.embeddings(input_ids=tokens.ids[:, : int(tokens.mask.sum())])
            for index, layer in enumerate(model.encoder.layer):
                found = layer(h)
                h = found[0] if isinstance(found, tuple) else found
                h = h + functional.gelu(h @ state[f"adapters.{index}.down"].T) @ state[f"adapters.{index}.up"]
            last = len(model.encoder.layer) - 1
            features = (h.mean(1) - state[f"statistics.{last}.mean"]) * state[f"statistics.{last}.rstd"]
            rows.append(features @ state[f"heads.{last}.weight"].T + state[f"heads.{last}.bias"])
    return torch.cat(rows)


@pytest.mark.parametrize("chunk_bytes", [1 << 26, 1])
def test_the_whole_model_predicts_as_transformers_does(
    tiny_bundle: Bundle, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    import transformers

    monkeypatch.setattr(whole_model, "CHUNK_BYTES", chunk_bytes)
    generator = np.random.default_rng(1)
    start = decode(tiny_bundle.path("adapters.safetensors").read_bytes(), "adapters")
    state = {
        name: torch.from_numpy((value + generator.normal(0, 0.05, value.shape)).astype(np.float32))
        for name, value in start.items()
    }
    model = transformers.AutoModel.from_pretrained(tiny_model, attn_implementation="eager").eval()
    labels = torch.tensor([number % 3 for number in range(len(TEXTS))])
    examples = [Example(text, int(label)) for text, label in zip(TEXTS, labels, strict=True)]
    seen: list[tuple[int, int]] = []
    found = predict(tiny_bundle, state, examples, lambda done, total: seen.append((done, total)))
    expected = reference_logits(model, tiny_bundle, state)
    assert torch.allclose(torch.from_numpy(found.logits), expected, atol=1e-5)
    assert found.correct == (expected.argmax(1) == labels).sum().item()
    assert found.loss_sum == pytest.approx(functional.cross_entropy(expected, labels, reduction="sum").item(), abs=1e-4)
    assert seen[-1][0] == seen[-1][1] == len(seen)
    assert sorted(seen) == seen
    state["heads.2.bias"][0] = float("nan")
    with pytest.raises(NotFiniteError):
        predict(tiny_bundle, state, examples[:2])
    del state["heads.2.bias"]
    with pytest.raises(BundleError, match=r"lacks heads\.2\.bias"):
        predict(tiny_bundle, state, examples[:2])
