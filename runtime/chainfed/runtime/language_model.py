"""A bundle's language model in this process: the loss over passages, and the continuation of a text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from chainfed.core.errors import BadInputError, NotFiniteError
from chainfed.core.manifest import Bundle
from chainfed.core.tensors import FloatArray
from chainfed.runtime.feeds import Named, language_head_feed, output_feed
from chainfed.runtime.language_data import NO_TARGET, LanguageRows, all_targets
from chainfed.runtime.program import Program
from chainfed.runtime.whole_model import chunks, last_hidden_states, load_program

State = Mapping[str, FloatArray | torch.Tensor]


@dataclass(frozen=True)
class Predicted:
    """Over all targets: how many the model finds most likely, the sum of their cross-entropy in nats, their number."""

    correct: int
    loss_sum: float
    targets: int


def predict_targets(
    bundle: Bundle, state: State, rows: LanguageRows, progress: Callable[[int, int], None] | None = None
) -> Predicted:
    """Predicts every target of the rows with the model's head on top of all layers and adapters.

    state: all adapters, float32. progress: called with (layers run so far, layers to run) over all batches. Raises
    BundleError when bundle and state do not fit, NotFiniteError when the loss is not finite.
    """
    tensors = {name: torch.as_tensor(tensor) for name, tensor in state.items()}
    parts: list[Predicted] = []
    for chunk, advance in chunks(bundle, len(rows.ids), progress):
        chosen = LanguageRows(rows.ids[chunk], rows.mask[chunk], rows.labels[chunk])
        parts += _predict_chunk(bundle, tensors, chosen, advance)
    total = Predicted(
        sum(part.correct for part in parts), sum(part.loss_sum for part in parts), sum(part.targets for part in parts)
    )
    if not math.isfinite(total.loss_sum):
        raise NotFiniteError("The model's loss is not finite; use an earlier checkpoint or a lower learning rate.")
    return total


def continue_greedily(bundle: Bundle, state: State, ids: Sequence[int], count: int) -> Iterator[int]:
    """The most likely token, `count` times, each after all before it; every token runs the whole model once.

    Raises BadInputError when there is no token to begin with, or what is to come does not fit the bundle's sequence
    length, and NotFiniteError when a logit is not finite.
    """
    shapes = bundle.manifest.shapes
    if not ids or len(ids) + count > shapes.seq_len:
        raise BadInputError(
            f"{len(ids)} tokens and {count} more do not fit: the bundle has rows of {shapes.seq_len}, and the first "
            "token must be given; give less, or export the bundle with a larger --seq-len."
        )
    tensors = {name: torch.as_tensor(tensor) for name, tensor in state.items()}
    row = torch.full((shapes.batch_size, shapes.seq_len), bundle.manifest.tokenizer.pad_token_id, dtype=torch.int64)
    mask = torch.zeros((shapes.batch_size, shapes.seq_len))
    row[:, : len(ids)] = torch.tensor(list(ids))
    mask[:, : len(ids)] = 1.0
    for length in range(len(ids), len(ids) + count):
        hidden = last_hidden_states(bundle, tensors, [row], [mask])[0]
        token = _most_likely(bundle, hidden, mask, length - 1)
        row[:, length], mask[:, length] = token, 1.0
        yield token


def _most_likely(bundle: Bundle, hidden: torch.Tensor, mask: torch.Tensor, place: int) -> int:
    with ExitStack() as mapped, load_program(bundle, "next") as program:
        feed = _head(bundle, mapped)
        places = torch.full((len(hidden),), place)
        logits = program.run({"h": hidden, "mask": mask, "places": places} | feed)["logits"][0]
        feed.clear()
    if not torch.isfinite(logits).all():
        raise NotFiniteError("The model's logits are not finite; use an earlier checkpoint or a lower learning rate.")
    return int(logits.argmax())


def _predict_chunk(bundle: Bundle, state: Named, rows: LanguageRows, advance: Callable[[int], None]) -> list[Predicted]:
    size = bundle.manifest.shapes.batch_size
    missing = -len(rows.ids) % size
    padded = list(range(len(rows.ids))) + [0] * missing
    labels = rows.labels[padded]
    labels[len(rows.ids) :] = NO_TARGET
    ids, masks = torch.split(rows.ids[padded], size), torch.split(rows.mask[padded], size)
    hidden = last_hidden_states(bundle, state, ids, masks, advance)
    with ExitStack() as mapped, load_program(bundle, "score") as program:
        feed = _head(bundle, mapped)
        results = []
        for h, mask, wanted in zip(hidden, masks, torch.split(labels, size), strict=True):
            results += _score(program, {"h": h, "mask": mask} | feed, wanted, bundle.manifest.task.max_target_tokens)
        feed.clear()
    return results


def _score(program: Program, inputs: Named, labels: torch.Tensor, size: int) -> list[Predicted]:
    results = []
    for targets in all_targets(labels, size):
        outputs = program.run({**inputs, **targets.feed(1.0)})
        results.append(Predicted(round(outputs["correct"].item()), outputs["loss_sum"].item(), targets.count))
    return results


def _head(bundle: Bundle, mapped: ExitStack) -> dict[str, torch.Tensor]:
    """The final norm and the head."""
    output = mapped.enter_context(output_feed(bundle.manifest, bundle.path))
    return output | mapped.enter_context(language_head_feed(bundle.manifest, bundle.path))
