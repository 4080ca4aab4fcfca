"""FOAT on a device: how far each layer takes its tokens from the embeddings (Sec. 4.4, Appendix A and G.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import torch

from chainfed.core.errors import BadInputError, NotFiniteError
from chainfed.core.order import SplitMix64, sample
from chainfed.core.tensors import FloatArray
from chainfed.harness.chain import Chain, KeptDepth
from chainfed.harness.cka import Centred, Tokens, centre, linear_cka, squared_cross_norm
from chainfed.harness.data import TokenData
from chainfed.harness.hidden import HiddenView
from chainfed.harness.mapped import MappedFile
from chainfed.harness.outcome import ProfileOutcome, write_tensors
from chainfed.harness.tasks import Work
from chainfed.v1 import device_service_pb2 as pb


def profile(work: Work, task: pb.ProfileTask) -> ProfileOutcome:
    """Scores each layer by token-level linear CKA (Eq. 3) with the embedding output; takes its features' statistics.

    Only real tokens count, over at most `max_examples` examples drawn with the assignment's seed. Raises BadInputError
    when there are fewer than two examples, NotFiniteError when a score or a statistic is not finite.
    """
    if len(work.data) < 2 or task.max_examples < 2:
        raise BadInputError("Profiling needs at least two examples; give the device more data.")
    rows = sample(range(len(work.data)), task.max_examples, SplitMix64(work.seed))
    data = work.data.select(rows)
    manifest = work.bundle.manifest
    num_layers, width, size = manifest.model.num_layers, manifest.model.hidden_size, manifest.shapes.batch_size
    padded = data.num_batches * size
    file = MappedFile(work.journal.path("features"), num_layers * padded * width * 4)
    features = file.tensor(0, (num_layers, padded, width))
    kept = KeptDepth(0, work.journal.path("embedding_output"), data.num_batches)
    with work.bundle.program("pool") as pool:

        def keep_features(depth: int, batch: int, h: torch.Tensor, mask: torch.Tensor) -> None:
            if depth > 0:
                pooled = pool.run({"h": h, "mask": mask}, clone_outputs=False)["features"]
                features[depth - 1, batch * size : (batch + 1) * size].copy_(pooled)

        chain = Chain(work.bundle, work.state, data, work.journal, kept, keep_features, work.checkpoint)
        with closing(chain):
            scores = _scores(replace(work, data=data), chain, num_layers)
    statistics: dict[str, FloatArray] = {}
    for layer in range(num_layers):
        values = features[layer, : len(data)].numpy().astype(np.float64)
        statistics[f"statistics.{layer}.mean"] = values.mean(axis=0).astype(np.float32)
        statistics[f"statistics.{layer}.variance"] = values.var(axis=0).astype(np.float32)
    file.close()
    return ProfileOutcome(len(data), tuple(scores), write_tensors(work.journal, statistics))


def _scores(work: Work, chain: Chain, num_layers: int) -> list[float]:
    """One journalled score after the other; each is taken while its layer's output is the newest one."""
    done: list[float] = work.journal.find("score")
    chain.advance_to(0)
    first = centre(_tokens(work.data, chain.view(0)))
    norms: list[float] = work.journal.find("embedding_norm")
    if not norms:
        norms.append(squared_cross_norm(first, first))
        work.journal.append({"embedding_norm": norms[0]})
    for layer in range(len(done), num_layers):
        chain.advance_to(layer + 1)
        output = centre(_tokens(work.data, chain.view(layer + 1)))
        score = _score(first, norms[0], output)
        if not math.isfinite(score):
            raise NotFiniteError(f"The output of layer {layer} is not finite; the model cannot be profiled.")
        work.journal.append({"score": score})
        done.append(score)
    return done


def _score(first: Centred, first_norm: float, output: Centred) -> float:
    return linear_cka(squared_cross_norm(first, output), first_norm, squared_cross_norm(output, output))


def _tokens(data: TokenData, hidden: HiddenView) -> Tokens:
    def pieces() -> Iterator[torch.Tensor]:
        for batch in range(data.num_batches):
            rows = data.stored_batch(batch)
            num_real = min(len(rows), len(data) - rows[0])
            real = data.mask[rows[:num_real]] > 0
            yield hidden.batch(batch)[:num_real][real]

    return pieces
