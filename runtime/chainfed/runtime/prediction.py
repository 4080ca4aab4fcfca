"""Classifying labelled texts with the whole model in this process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from chainfed.core.errors import NotFiniteError
from chainfed.core.examples import Example
from chainfed.core.manifest import TOKENIZER_FILE, Bundle
from chainfed.core.tensors import FloatArray
from chainfed.runtime.feeds import Named, head_feed, output_feed
from chainfed.runtime.tokenization import Tokenizer
from chainfed.runtime.whole_model import chunks, last_hidden_states, load_program

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prediction:
    """What the model says about some examples.

    `correct`: how many the final head classifies rightly; `loss_sum`: sum of their cross-entropy in nats;
    `logits`: (examples, labels) float32 in the order of the examples.
    """

    correct: int
    loss_sum: float
    logits: FloatArray


def predict(
    bundle: Bundle,
    state: Mapping[str, FloatArray | torch.Tensor],
    examples: Sequence[Example],
    progress: Progress | None = None,
) -> Prediction:
    """Classifies `examples` with the final head on top of all layers and adapters.

    state: all adapters, the final head and the last layer's statistics, float32, by the names of
    `chainfed.core.tensors`.
    progress: called with (layers run so far, layers to run) over all batches.
    The hidden states of at most 64 MiB of batches are held at a time. Raises BundleError when bundle and state do not
    fit, NotFiniteError when a logit is not finite.
    """
    tensors = {name: torch.as_tensor(tensor) for name, tensor in state.items()}
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.path(TOKENIZER_FILE), manifest.tokenizer.pad_token_id, manifest.shapes.seq_len)
    parts = [
        _predict_chunk(bundle, tensors, tokenizer, examples[rows], advance)
        for rows, advance in chunks(bundle, len(examples), progress)
    ]
    logits = (
        np.concatenate([part.logits for part in parts]) if parts else np.zeros((0, manifest.num_labels), np.float32)
    )
    if not np.isfinite(logits).all():
        raise NotFiniteError("The model's logits are not finite; use an earlier checkpoint or a lower learning rate.")
    return Prediction(sum(part.correct for part in parts), sum(part.loss_sum for part in parts), logits)


def _predict_chunk(
    bundle: Bundle, state: Named, tokenizer: Tokenizer, examples: Sequence[Example], advance: Callable[[int], None]
) -> Prediction:
    size = bundle.manifest.shapes.batch_size
    padded = -(-len(examples) // size) * size
    rows = list(range(len(examples))) + [0] * (padded - len(examples))
    tokens = tokenizer([example.text for example in examples])
    ids, masks = torch.split(tokens.ids[rows], size), torch.split(tokens.mask[rows], size)
    labels = torch.split(torch.tensor([examples[row].label for row in rows], dtype=torch.int64), size)
    weights = torch.split(torch.tensor([1.0] * len(examples) + [0.0] * (padded - len(examples))), size)

    hidden = last_hidden_states(bundle, state, ids, masks, advance)
    with load_program(bundle, "score") as score, output_feed(bundle.manifest, bundle.path) as output:
        feed = output | head_feed(bundle.manifest, state, bundle.manifest.model.num_layers - 1)
        results = [
            score.run({"h": h, "mask": mask, "labels": label, "sample_weights": weight} | feed)
            for h, mask, label, weight in zip(hidden, masks, labels, weights, strict=True)
        ]
        feed.clear()
    logits = torch.cat([result["logits"] for result in results])[: len(examples), : bundle.manifest.num_labels]
    return Prediction(
        correct=round(sum(result["correct"].item() for result in results)),
        loss_sum=sum(result["loss_sum"].item() for result in results),
        logits=logits.numpy(),
    )
