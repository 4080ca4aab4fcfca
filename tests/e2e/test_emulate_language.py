"""A language model through the whole chain: a coordinator process, device processes, and a model that has learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chainfed.core.manifest import Bundle
from chainfed.core.tensors import check_shapes, decode
from chainfed.harness.emulate import emulate
from chainfed.harness.partition import PartitionSpec
from chainfed.v1 import run_service_pb2 as pb


def test_devices_teach_a_language_model_to_answer(
    make_settings: Any, tiny_language_bundle: Bundle, tiny_passages: Any
) -> None:
    config = pb.RunConfig(
        window_size=2, rounds=4, devices_per_round=3, min_devices=3, seed=2, foat_threshold=1.0, adapter_lr=1e-2
    )
    result = emulate(
        make_settings(
            bundle=tiny_language_bundle.folder,
            train_file=Path(tiny_passages.train),
            test_file=Path(tiny_passages.test),
            partition=PartitionSpec(None),
            config=config,
        )
    )
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    losses = [event["evaluated"]["loss"] for event in events if "evaluated" in event]
    assert result.rounds == 4
    assert (result.loss.before, result.loss.after) == (losses[0], losses[-1])
    assert result.loss.after < result.loss.before - 0.5
    assert result.accuracy.after > result.accuracy.before
    kinds = {event["round_opened"]["kind"] for event in events if "round_opened" in event}
    assert kinds == {"PROFILE", "TRAIN", "EVALUATE"}
    state = decode(result.adapters.read_bytes(), "the checkpoint")
    check_shapes(state, tiny_language_bundle.manifest.state_shapes(), "the checkpoint")
