"""Cross-entropy over a vocabulary in chunks, against torch's own over whole logits in double precision."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from chainfed.toolchain import vocabulary_loss as module
from chainfed.toolchain.vocabulary_loss import vocabulary_logits, vocabulary_loss


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("vocabulary", [7, 40, 50], ids=["one chunk", "whole chunks", "a partial chunk"])
def test_losses_hits_and_gradients(vocabulary: int, softcap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 20)
    generator = torch.Generator().manual_seed(vocabulary)
    features = torch.randn(9, 12, generator=generator) * 2
    head = torch.randn(vocabulary, 12, generator=generator)
    targets = torch.randint(vocabulary, (9,), generator=generator)
    found = vocabulary_loss(features, head, targets, softcap)

    exact = features.double().requires_grad_()
    logits = exact @ head.double().T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    losses = functional.cross_entropy(logits, targets, reduction="none")
    losses.sum().backward()
    assert exact.grad is not None
    assert torch.allclose(found.losses.double(), losses, atol=1e-5)
    assert torch.allclose(found.gradient.double(), exact.grad, atol=1e-5)
    assert torch.equal(found.hits.bool(), logits.argmax(dim=1) == targets)
    assert torch.allclose(vocabulary_logits(features, head, softcap).double(), logits, atol=1e-5)


def test_logits_of_any_size_do_not_overflow() -> None:
    features = torch.tensor([[300.0], [-300.0]])
    found = vocabulary_loss(features, torch.tensor([[1.0], [-1.0], [0.0]]), torch.tensor([1, 1]))
    assert torch.allclose(found.losses, torch.tensor([600.0, 0.0]))
    assert torch.equal(found.hits, torch.tensor([0.0, 1.0]))
    assert torch.isfinite(found.gradient).all()
