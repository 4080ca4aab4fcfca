"""FOAT on a device: how far each layer takes its tokens from the embeddings (Sec. 4.4, Appendix A and G.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import torch

from chainfed.core.errors import NotFiniteError
from chainfed.core.order import SplitMix64, sample
from chainfed.core.tensors import FloatArray
from chainfed.harness.arithmetic import moments
from chainfed.harness.chain import Chain, KeptDepth
from chainfed.harness.cka import Centred, Tokens, centre, linear_cka, squared_cross_norm
from chainfed.harness.data import TokenData
from chainfed.harness.hidden import HiddenView
from chainfed.harness.outcome import ProfileOutcome, write_tensors
from chainfed.harness.tasks import FeatureFile, Work
from chainfed.v1 import device_service_pb2 as pb


def profile(work: Work, task: pb.ProfileTask) -> ProfileOutcome:
    """Scores each layer by token-level linear CKA (Eq. 3) with the embedding output; takes its features' statistics.

    A language model has no heads that would need statistics, and hands in none.
    Only real tokens count, over at most `max_examples` examples drawn with the assignment's seed. Raises
    NotFiniteError when a score or a statistic is not finite.
    """
    rows = sample(range(len(work.data)), task.max_examples, SplitMix64(work.seed))
    data = work.data.select(rows)
    sampled = replace(work, data=data)
    num_layers = work.bundle.manifest.model.num_layers
    kept = KeptDepth(0, work.journal.path("embedding_output"), data.num_batches)
    statistics: dict[str, FloatArray] = {}
    if work.bundle.manifest.is_language_model:
        with closing(Chain(work.bundle, work.state, data, work.journal, kept, None, work.checkpoint)) as chain:
            scores = _scores(sampled, chain, num_layers)
        return ProfileOutcome(len(data), tuple(scores), write_tensors(work.journal, statistics))
    with closing(FeatureFile(sampled, num_layers)) as file:
        with work.bundle.program("pool") as pool, work.bundle.output() as output:

            def keep(depth: int, batch: int, h: torch.Tensor, mask: torch.Tensor) -> None:
                if depth > 0:
                    pooled = pool.run({"h": h, "mask": mask} | output, clone_outputs=False)["features"]
                    file.put(depth - 1, batch, pooled)

            with closing(Chain(work.bundle, work.state, data, work.journal, kept, keep, work.checkpoint)) as chain:
                scores = _scores(sampled, chain, num_layers)
        for layer in range(num_layers):
            mean, variance = moments(file.layer(layer)[: len(data)].numpy())
            statistics |= {f"statistics.{layer}.mean": mean, f"statistics.{layer}.variance": variance}
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
            hidden.file.release()

    return pieces
