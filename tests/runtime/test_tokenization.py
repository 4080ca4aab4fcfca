"""Token ids and masks, for any text and any tokenizer file."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

from chainfed.core.errors import BundleError
from chainfed.runtime.tokenization import Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "dog"]


def save(path: Path, special: bool = True) -> Path:
    tokenizer = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=64, pad_id=0)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(path))
    return path


def test_texts_are_cut_and_padded(tmp_path: Path) -> None:
    batch = Tokenizer(save(tmp_path / "t.json"), pad_token_id=0, seq_len=5)(["cat dog", "", "cat " * 9, "bird"])
    assert batch.ids.tolist() == [[2, 4, 5, 3, 0], [2, 3, 0, 0, 0], [2, 4, 4, 4, 3], [2, 1, 3, 0, 0]]
    assert batch.mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert (batch.ids.dtype, batch.mask.dtype) == (torch.int64, torch.float32)


def test_every_row_has_a_token_even_without_special_tokens(tmp_path: Path) -> None:
    batch = Tokenizer(save(tmp_path / "t.json", special=False), pad_token_id=0, seq_len=3)(["", "cat"])
    assert batch.mask.sum(1).tolist() == [1, 1]


def test_no_texts_and_more_texts_than_a_piece(tmp_path: Path) -> None:
    tokenizer = Tokenizer(save(tmp_path / "t.json"), pad_token_id=0, seq_len=4)
    assert tokenizer([]).ids.shape == (0, 4)
    batch = tokenizer(["cat"] * 300 + ["dog"])
    assert batch.ids[:, 1].tolist() == [4] * 300 + [5]


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        Tokenizer(tmp_path / "none.json", 0, 4)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(BundleError, match="no readable tokenizer"):
        Tokenizer(tmp_path / "t.json", 0, 4)
