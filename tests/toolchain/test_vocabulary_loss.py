"""Cross-entropy over a vocabulary in chunks, against torch's own over whole logits in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from chainfed.toolchain import vocabulary_loss as module
from chainfed.toolchain.programs import Named, ProgramDefinition, TensorSpec
from chainfed.toolchain.vocabulary_loss import vocabulary_logits, vocabulary_loss


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("vocabulary", [7, 60, 53], ids=["one chunk", "chunks that divide it", "a partial chunk"])
def test_losses_hits_and_gradients(vocabulary: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 20)
    monkeypatch.setattr(module, "_TILE", 5)
    generator = torch.Generator().manual_seed(vocabulary)
    features = torch.randn(9, 12, generator=generator) * 2
    head = torch.randn(vocabulary, 12, generator=generator)
    targets = torch.randint(vocabulary, (9,), generator=generator)
    features.requires_grad_()
    found, hits = vocabulary_loss(features, {"weight": head}, targets, softcap)
    found.sum().backward()

    exact = features.detach().double().requires_grad_()
    logits = exact @ head.double().T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = functional.cross_entropy(logits, targets, reduction="none")
    losses.sum().backward()
    assert exact.grad is not None
    assert features.grad is not None
    assert torch.allclose(found.double(), losses, atol=1e-5)
    assert torch.allclose(features.grad.double(), exact.grad, atol=1e-5)
    assert torch.equal(hits.bool(), logits.argmax(dim=1) == targets)
    assert torch.allclose(vocabulary_logits(features, {"weight": head}, softcap).double(), logits, atol=1e-5)


@pytest.mark.parametrize("vocabulary", [140, 139], ids=["chunks that divide it", "a partial chunk"])
def test_logits_of_a_large_vocabulary_are_lowered(
    vocabulary: int, lowered: Any, difference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No chunk is kept while another is computed."""
    monkeypatch.setattr(module, "CHUNK_ROWS", 20)
    monkeypatch.setattr(module, "_TILE", 5)
    shapes = {"features": (3, 64), "weight": (vocabulary, 64), "logits": (3, vocabulary)}
    specs = {name: TensorSpec(name, shape) for name, shape in shapes.items()}

    def compute(tensors: Named) -> Named:
        return {"logits": vocabulary_logits(tensors["features"], {"weight": tensors["weight"]})}

    definition = ProgramDefinition("next", (specs["features"], specs["weight"]), (specs["logits"],), compute)
    program = lowered(definition)
    inputs = {"features": torch.randn(3, 64), "weight": torch.randn(vocabulary, 64)}
    assert difference(program.run(inputs), compute(inputs)) < 1e-5
    assert program.program.arena_bytes < specs["weight"].nbytes / 2


def test_chunks_divide_the_vocabulary_where_they_stay_large() -> None:
    llama_3, llama_2, gemma, qwen, one_token_more = 128256, 32000, 256000, 151936, 32001
    rows = [module.chunk_rows(vocabulary) for vocabulary in (llama_3, llama_2, gemma, qwen, one_token_more, 300)]
    assert rows == [768, 800, 1024, 1024, 1024, 300]


def test_logits_of_any_size_do_not_overflow() -> None:
    features = torch.tensor([[300.0], [-300.0]], requires_grad=True)
    losses, hits = vocabulary_loss(features, {"weight": torch.tensor([[1.0], [-1.0], [0.0]])}, torch.tensor([1, 1]))
    losses.sum().backward()
    assert torch.allclose(losses, torch.tensor([600.0, 0.0]))
    assert torch.equal(hits, torch.tensor([0.0, 1.0]))
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
