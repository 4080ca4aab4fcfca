"""Accuracy and loss of a bundle with given adapters on labelled texts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chainfed.core.examples import read_examples
from chainfed.core.manifest import TOKENIZER_FILE, Bundle
from chainfed.core.passages import read_passages
from chainfed.runtime.language_data import encode_passages
from chainfed.runtime.language_model import predict_targets
from chainfed.runtime.prediction import predict
from chainfed.toolchain.model_state import read_model_state


@dataclass(frozen=True)
class Evaluation:
    """Share of examples predicted rightly, mean cross-entropy in nats, and how many examples there were.

    An example is a text of a classifier, and a target token of a language model.
    """

    accuracy: float
    loss: float
    examples: int


def evaluate_bundle(
    bundle: Bundle,
    data: Path,
    adapters: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predicts all that a file asks for with the bundle's own programs, layer by layer, and the final head.

    Args:
        bundle: the programs and the frozen weights.
        data: JSON lines, optionally gzipped, with `text` and `label`, or passages for a language model.
        adapters: the model state of a run; None for the bundle's initial one.
        on_progress: called with how many layers are done and how many there are.

    Raises:
        BadInputError: a file is absent, or a row or label is unusable.
        BundleError: the bundle is damaged, or the adapters are of another model or label set.
        NotFiniteError: a logit is not finite.
    """
    state = read_model_state(bundle, adapters)
    if bundle.manifest.is_language_model:
        tokenizer_file = bundle.path(TOKENIZER_FILE) if bundle.manifest.has_tokenizer else None
        rows = encode_passages(read_passages(data), bundle.manifest, tokenizer_file)
        found = predict_targets(bundle, state, rows, on_progress)
        return Evaluation(found.correct / found.targets, found.loss_sum / found.targets, found.targets)
    examples = read_examples(data, bundle.manifest.task.labels)
    prediction = predict(bundle, state, examples, on_progress)
    return Evaluation(prediction.correct / len(examples), prediction.loss_sum / len(examples), len(examples))
