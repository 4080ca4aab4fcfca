"""What `inspect` tells about a bundle."""

from __future__ import annotations

import json

from chainfed.core.manifest import Bundle
from chainfed.toolchain.inspect import describe_bundle


def test_the_description_is_json_and_says_what_the_manifest_says(tiny_bundle: Bundle) -> None:
    facts = json.loads(json.dumps(describe_bundle(tiny_bundle)))
    manifest = tiny_bundle.manifest
    assert facts["windows"]["2"]["anonymous_bytes"] == manifest.windows[2].anonymous_bytes
    assert facts["windows"]["2"]["file_bytes"] == manifest.windows[2].file_bytes
    assert set(facts["windows"]) == {"1", "2", "3"}
    assert facts["round_bytes"]["1"] == manifest.round_bytes(1)
    assert list(facts["shards"]) == [
        f"weights/{name}.safetensors" for name in ("embeddings", "layer_00", "layer_01", "layer_02")
    ]
    assert facts["programs"]["window_q1"]["inputs"] == len(manifest.programs["window_q1"].inputs)
    assert facts["task"]["labels"] == ["animals", "food", "machines"]


def test_the_full_model_is_counted_from_its_weights(tiny_bundle: Bundle) -> None:
    facts = describe_bundle(tiny_bundle)
    weights = sum(facts["shards"].values())
    assert facts["full_model_bytes"] <= weights <= facts["full_model_bytes"] * 1.1
