"""A device's labelled texts as token ids, cut into batches of the programs' static size."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from chainfed.core.examples import Example, read_examples
from chainfed.core.manifest import TOKENIZER_FILE
from chainfed.core.passages import read_passages
from chainfed.harness.bundle import DeviceBundle
from chainfed.runtime.language_data import encode_passages
from chainfed.runtime.tokenization import Tokenizer


@dataclass(frozen=True)
class TokenData:
    """Examples in the order of the file, and the batch size that they are stored with.

    ids: (examples, seq) int64; mask: (examples, seq) float32; labels: int64, (examples,) of a classifier, and of a
    language model (examples, seq): the token to predict at each position, or NO_TARGET.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    labels: torch.Tensor
    batch_size: int

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @property
    def num_batches(self) -> int:
        """Batches, the last of which may be partial."""
        return -(-len(self) // self.batch_size)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that a device computes from: "rows seq batch_size", ids, mask and labels."""
        rows, seq = self.ids.shape
        digest = hashlib.sha256(f"{rows} {seq} {self.batch_size}".encode())
        for tensor in (self.ids, self.mask, self.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def stored_batch(self, index: int) -> list[int]:
        """The examples of one stored batch, `batch_size` of them (see `pad`)."""
        start = index * self.batch_size
        return pad(range(start, min(start + self.batch_size, len(self))), self.batch_size)

    def select(self, rows: Sequence[int]) -> TokenData:
        """Some of the examples, in the order given."""
        chosen = list(rows)
        return TokenData(self.ids[chosen], self.mask[chosen], self.labels[chosen], self.batch_size)


def read_tokens(bundle: DeviceBundle, file: Path) -> TokenData:
    """The examples of a file for a bundle's task. Raises BadInputError when they cannot be used."""
    manifest = bundle.manifest
    if manifest.is_language_model:
        tokenizer_file = bundle.path(TOKENIZER_FILE) if manifest.has_tokenizer else None
        rows = encode_passages(read_passages(file), manifest, tokenizer_file)
        return TokenData(rows.ids, rows.mask, rows.labels, manifest.shapes.batch_size)
    tokenizer = Tokenizer(bundle.path(TOKENIZER_FILE), manifest.tokenizer.pad_token_id, manifest.shapes.seq_len)
    return tokenize(read_examples(file, manifest.task.labels), tokenizer, manifest.shapes.batch_size)


def tokenize(examples: Sequence[Example], tokenizer: Tokenizer, batch_size: int) -> TokenData:
    """The examples as token ids."""
    tokens = tokenizer([example.text for example in examples])
    labels = torch.tensor([example.label for example in examples], dtype=torch.int64)
    return TokenData(tokens.ids, tokens.mask, labels, batch_size)


def pad(rows: Sequence[int], size: int) -> list[int]:
    """`rows` brought to `size` by repeating the first one; the repeated ones get weight zero (see `sample_weights`)."""
    return [*rows, *[rows[0]] * (size - len(rows))]


def sample_weights(num_real: int, size: int, each: float) -> torch.Tensor:
    """`each` on the first `num_real` of `size` rows and zero on the padding: (size,) float32."""
    weights = torch.zeros(size, dtype=torch.float32)
    weights[:num_real] = each
    return weights
