"""Passages as rows of token ids, and which of their tokens are to be predicted."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from chainfed.core.chat import Message
from chainfed.core.errors import BadInputError
from chainfed.core.manifest import Bundle, Manifest, Task
from chainfed.core.passages import Passage
from chainfed.runtime.language_data import NO_TARGET, LanguageRows, choose_targets, encode_passages, target_feed


@pytest.fixture
def encode(tiny_language_bundle: Bundle) -> Any:
    """`encode(passages, packing=True, seq_len=8)`."""

    def make(passages: list[Passage], seq_len: int = 16, **task: Any) -> LanguageRows:
        manifest = tiny_language_bundle.manifest
        changed: Manifest = manifest.model_copy(
            update={
                "task": manifest.task.model_copy(update=task),
                "shapes": manifest.shapes.model_copy(update={"seq_len": seq_len}),
            }
        )
        return encode_passages(passages, changed, tiny_language_bundle.path("tokenizer.json"))

    return make


def words_of(bundle: Bundle, ids: torch.Tensor) -> list[str]:
    vocabulary = json.loads(bundle.path("tokenizer.json").read_text())["model"]["vocab"]
    names = {number: word for word, number in vocabulary.items()}
    return [names[int(token)] for token in ids if token != NO_TARGET]


def test_every_token_of_a_text_but_the_first_is_a_target(encode: Any, tiny_language_bundle: Bundle) -> None:
    rows = encode([Passage("", text="the cat saw a dog")])
    assert words_of(tiny_language_bundle, rows.labels[0]) == ["the", "cat", "saw", "a", "dog", "[SEP]"]
    assert torch.equal(rows.labels[0, :6], rows.ids[0, 1:7])
    assert (rows.labels[0, 6:] == NO_TARGET).all()
    assert rows.mask[0].tolist() == [1.0] * 7 + [0.0] * 9


def test_of_a_conversation_only_the_answer_is_a_target(encode: Any, tiny_language_bundle: Bundle) -> None:
    rows = encode([Passage("", messages=(Message("user", "cat dog"), Message("assistant", "we saw cat")))], seq_len=32)
    assert words_of(tiny_language_bundle, rows.labels[0])[:3] == ["we", "saw", "cat"]
    inside = rows.labels[0] != NO_TARGET
    before = words_of(tiny_language_bundle, rows.ids[0][: int(inside.nonzero()[0])])
    assert "dog" in before
    assert "we" not in before


def test_rows_are_cut_and_those_with_nothing_to_predict_left_out(encode: Any, tiny_language_bundle: Bundle) -> None:
    late = Passage("", messages=(Message("user", "cat " * 20), Message("assistant", "dog")))
    rows = encode([late, Passage("", text="the cat saw a dog")], seq_len=4)
    assert words_of(tiny_language_bundle, rows.labels[0]) == ["the", "cat", "saw"]
    assert len(rows.ids) == 1
    with pytest.raises(BadInputError, match="No passage has a token to predict among its first 4"):
        encode([late], seq_len=4)


def test_packing_fills_rows_and_predicts_no_first_token(encode: Any, tiny_language_bundle: Bundle) -> None:
    passages = [Passage("", ids=(5, 6, 7)), Passage("", ids=(8, 9)), Passage("", ids=(10, 11, 12, 13))]
    rows = encode(passages, seq_len=6, packing=True)
    assert rows.ids.tolist() == [[5, 6, 7, 8, 9, 0], [10, 11, 12, 13, 0, 0]]
    assert rows.labels.tolist()[0] == [6, 7, NO_TARGET, 9, NO_TARGET, NO_TARGET]
    assert len(encode(passages, seq_len=6, packing=False).ids) == 3


def test_passages_that_a_bundle_cannot_read(tiny_language_bundle: Bundle) -> None:
    manifest = tiny_language_bundle.manifest
    with pytest.raises(BadInputError, match=r"data, line 3 is text, but .* without a tokenizer"):
        encode_passages([Passage("data, line 3", text="x")], manifest, None)
    with pytest.raises(BadInputError, match="token id 99 is not below the vocabulary of 50"):
        encode_passages([Passage("", ids=(1, 99))], manifest, None)
    tokenizer = tiny_language_bundle.path("tokenizer.json")
    answer_first = Passage("data, line 4", messages=(Message("assistant", "x"),))
    with pytest.raises(BadInputError, match="data, line 4: The conversation has the start before a turn of assistant"):
        encode_passages([answer_first], manifest, tokenizer)


def by_hand(labels: list[list[int]], most: int) -> list[int]:
    """Places by the rule, tried bound by bound."""
    width = len(labels[0])
    rows = [
        [row * width + place for place, label in enumerate(line) if label != NO_TARGET]
        for row, line in enumerate(labels)
    ]
    for bound in range(width, 0, -1):
        kept = [place for row in rows for place in row[:bound]]
        if len(kept) <= most:
            return kept
    return [row[0] for row in rows if row][:most]


@pytest.mark.parametrize("most", range(1, 14))
def test_a_batch_keeps_an_even_share_of_its_targets(most: int) -> None:
    none = NO_TARGET
    labels = [[4, none, 5, 6, 7, 8], [none, 9, none, 1, none, none], [none] * 6, [2, 3, 4, none, 5, 6]]
    places, targets = choose_targets(torch.tensor(labels), most)
    assert places.tolist() == by_hand(labels, most)
    assert targets.tolist() == [labels[place // 6][place % 6] for place in places.tolist()]
    assert 1 <= len(places) <= most


def test_unused_places_weigh_nothing() -> None:
    feed = target_feed(torch.tensor([3, 9]), torch.tensor([7, 8]), 4, 0.5)
    assert feed["target_places"].tolist() == [3, 9, 0, 0]
    assert feed["targets"].tolist() == [7, 8, 0, 0]
    assert feed["target_weights"].tolist() == [0.5, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    "task",
    [
        {"kind": "classification", "labels": ["a"], "pooling": "mean"},
        {"kind": "classification", "labels": ["a", "b"]},
        {"kind": "language_modelling"},
        {"kind": "language_modelling", "max_target_tokens": 4, "labels": ["a", "b"]},
    ],
)
def test_a_task_is_whole(task: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"classifier needs|language model has no labels"):
        Task.model_validate(task)
