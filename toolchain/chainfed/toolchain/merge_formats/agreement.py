"""Holding a form of the tuned model against the Hugging Face folder it was made from, on real and on random tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chainfed.core.errors import VerificationError
from chainfed.core.manifest import TOKENIZER_FILE, Bundle
from chainfed.runtime.tokenization import Tokenizer
from chainfed.toolchain.merge_formats.tuned_model import LogitsModel
from chainfed.toolchain.verify import relative_error
from chainfed.toolchain.verify_cases import SENTENCES

Batch = tuple[Tensor, Tensor]
"""`input_ids` and `attention_mask`, (B, S) int64 each."""


@dataclass(frozen=True)
class Agreement:
    """How well a form agrees with the Hugging Face folder.

    Attributes:
        largest_difference: of any logit, relative to the folder's where that exceeds 1; infinite when a logit is not
            finite.
        largest_logit: of the folder, by magnitude: what the difference is to be seen against.
        batches: how many were compared.
    """

    largest_difference: float
    largest_logit: float
    batches: int


def text_batches(bundle: Bundle, seq_len: int, sizes: Sequence[int]) -> list[Batch]:
    """Built-in sentences as batches of the given sizes, each as long as its longest row, then one of random tokens.

    The batch of random tokens has the last of the sizes and `seq_len` tokens in each row, none of them padding. It is
    the only one for a bundle without a tokenizer.
    """
    batches = []
    if bundle.manifest.has_tokenizer:
        tokenizer = Tokenizer(bundle.path(TOKENIZER_FILE), bundle.manifest.tokenizer.pad_token_id, seq_len)
        first = 0
        for size in sizes:
            tokens = tokenizer([SENTENCES[(first + row) % len(SENTENCES)] for row in range(size)])
            first += size
            length = int(tokens.mask.sum(dim=1).max().item())
            batches.append((tokens.ids[:, :length], tokens.mask[:, :length].to(torch.int64)))
    return [*batches, _random_batch(bundle, sizes[-1], seq_len)]


def padded(batch: Batch, seq_len: int, pad_token_id: int) -> Batch:
    """A batch with padding after its tokens, (B, seq_len)."""
    missing = seq_len - batch[0].shape[1]
    ids, mask = (
        torch.nn.functional.pad(tensor, (0, missing), value=value)
        for tensor, value in zip(batch, (pad_token_id, 0), strict=True)
    )
    return ids, mask


def compare(
    model: LogitsModel,
    form: Callable[[Tensor, Tensor], Tensor],
    batches: Sequence[Batch],
    tolerance: float,
    what: str,
) -> Agreement:
    """Runs a form and the model over the same batches.

    Logits of single positions count where the position is a token.

    Raises:
        VerificationError: naming `what`, when they differ by more than `tolerance`.
    """
    largest = largest_logit = 0.0
    for ids, mask in batches:
        with torch.no_grad():
            expected = model(ids, mask)
        actual = form(ids, mask)
        if expected.dim() == 3 and actual.shape == expected.shape:
            expected, actual = expected[mask > 0], actual[mask > 0]
        largest = max(largest, relative_error(actual, expected))
        largest_logit = max(largest_logit, expected.abs().max().item())
    if largest > tolerance:
        raise VerificationError(
            f"{what} differs from the Hugging Face model by {largest:.2g}, more than the tolerance {tolerance:g}; "
            "nothing was written. Use --format hf, or a larger --tolerance if that much does not matter."
        )
    return Agreement(largest, largest_logit, len(batches))


def _random_batch(bundle: Bundle, rows: int, seq_len: int) -> Batch:
    pad, vocabulary = bundle.manifest.tokenizer.pad_token_id, bundle.manifest.model.vocab_size
    ids = torch.randint(vocabulary, (rows, seq_len), generator=torch.Generator().manual_seed(0))
    ids = torch.where(ids == pad, (pad + 1) % vocabulary, ids)  # some models find padding by its id
    return ids, torch.ones_like(ids)
