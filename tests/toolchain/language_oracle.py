"""What transformers makes of a language model: the oracle of the chained programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional

from chainfed.runtime.language_data import NO_TARGET


def load(folder: Path) -> Any:
    """The model of a folder, ready to be asked."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """The tokens that `generate` puts after these."""
    given = torch.tensor([ids])
    with torch.no_grad():
        out = model.generate(
            given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=count, eos_token_id=None
        )
    return out[0, len(ids) :].tolist()


def loss_and_hits(model: Any, rows: Any) -> tuple[float, int]:
    """The sum of the losses of all targets of encoded rows, in nats, and how many the model predicts."""
    with torch.no_grad():
        logits = model(input_ids=rows.ids, attention_mask=rows.mask.long()).logits
    wanted = rows.labels != NO_TARGET
    losses = functional.cross_entropy(logits[wanted], rows.labels[wanted], reduction="sum")
    return losses.item(), int((logits[wanted].argmax(dim=1) == rows.labels[wanted]).sum())
