"""A model and a labelled text set made from nothing, for a demonstration on a machine that has neither.

The encoder is a small BERT with random weights; the texts are generated reviews of four kinds of places. Nothing here
is real, and
accuracies on it say nothing about real tasks: it shows that the chain learns, and how the parts work together.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing
from tokenizers.trainers import WordPieceTrainer
from transformers import BertConfig, BertModel
from transformers.utils.logging import disable_progress_bar

LABELS = ("restaurant", "workshop", "library", "garden")

_OWN_WORDS = {
    "restaurant": ["menu", "waiter", "soup", "dessert", "kitchen", "chef", "spicy", "table", "napkin", "portion"],
    "workshop": ["engine", "brake", "mechanic", "wrench", "tyre", "oil", "clutch", "gearbox", "repair", "bolt"],
    "library": ["shelf", "novel", "reader", "catalogue", "quiet", "chapter", "archive", "librarian", "loan", "poem"],
    "garden": ["rose", "compost", "hedge", "pond", "tulip", "gardener", "seed", "meadow", "bench", "orchard"],
}
_SHARED_WORDS = [
    "the",
    "a",
    "very",
    "quite",
    "rather",
    "place",
    "people",
    "morning",
    "evening",
    "visit",
    "again",
    "never",
    "always",
    "friendly",
    "slow",
    "quick",
    "big",
    "small",
    "price",
    "near",
    "far",
    "street",
    "town",
    "old",
    "new",
    "clean",
    "busy",
    "open",
    "closed",
    "weekend",
    "family",
    "staff",
    "door",
    "window",
    "light",
    "good",
    "bad",
    "fine",
    "work",
    "wait",
    "time",
]
_OWN_SHARE = 0.25
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@dataclass(frozen=True)
class SampleTask:
    """Where the made things lie."""

    model: Path
    train: Path
    test: Path
    labels: Path


def make_sample_task(folder: Path, *, num_train: int, num_test: int, seed: int) -> SampleTask:
    """Writes a random-weight encoder of 6 layers with its tokenizer, a training and a held-out file and the label
    names into `folder`."""
    generator = random.Random(seed)
    rows = list(_rows(generator, num_train + num_test))
    task = SampleTask(folder / "model", folder / "train.jsonl", folder / "test.jsonl", folder / "labels.json")
    folder.mkdir(parents=True, exist_ok=True)
    _write(task.train, rows[:num_train])
    _write(task.test, rows[num_train:])
    task.labels.write_text(json.dumps(LABELS))
    tokenizer = _tokenizer([str(row["text"]) for row in rows])
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=64,
        pad_token_id=0,
        initializer_range=0.06,  # so that layers differ as those of a trained model do
    )
    disable_progress_bar()
    BertModel(config, add_pooling_layer=False).save_pretrained(task.model)
    tokenizer.save(str(task.model / "tokenizer.json"))
    return task


def _rows(generator: random.Random, count: int) -> Iterator[dict[str, object]]:
    """Texts of 12 to 24 words, about one word in four from the label's own list."""
    for number in range(count):
        label = number % len(LABELS)
        own = _OWN_WORDS[LABELS[label]]
        words = [
            generator.choice(own if generator.random() < _OWN_SHARE else _SHARED_WORDS)
            for _ in range(generator.randint(12, 24))
        ]
        yield {"text": " ".join(words) + ".", "label": label}


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.train_from_iterator(
        texts, WordPieceTrainer(vocab_size=1000, special_tokens=_SPECIAL, show_progress=False)
    )
    sep, cls = ((token, _SPECIAL.index(token)) for token in ("[SEP]", "[CLS]"))  # special tokens come first
    tokenizer.post_processor = BertProcessing(sep, cls)
    return tokenizer
