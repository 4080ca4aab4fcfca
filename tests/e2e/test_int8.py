"""A federation over int8 weights: FOAT, warm-up, windows and evaluation on programs that hold or widen them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from chainfed.core.manifest import Bundle
from chainfed.core.tensors import check_shapes, decode
from chainfed.harness.emulate import emulate

pytestmark = pytest.mark.slow


def test_the_chain_learns_over_int8_weights(int8_bundle: Bundle, make_settings) -> None:
    result = emulate(make_settings(bundle=int8_bundle.folder))
    assert (result.rounds, result.window_size) == (3, 2)
    assert result.accuracy.after > result.accuracy.before + 0.1
    state = decode(result.adapters.read_bytes(), "the checkpoint")
    check_shapes(state, int8_bundle.manifest.state_shapes(), "the checkpoint")
    assert all(np.isfinite(tensor).all() for tensor in state.values())
    kinds = [json.loads(line).get("round_closed", {}).get("round", {}).get("kind") for line in _lines(result)]
    assert {"PROFILE", "WARMUP", "TRAIN", "EVALUATE"} <= set(kinds)


def _lines(result) -> list[str]:
    return (result.folder / "events.jsonl").read_text().splitlines()
