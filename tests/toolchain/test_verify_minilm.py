"""The whole toolchain on a real, pretrained model: every program within the tolerance, and a faithful merge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chainfed.core.examples import read_examples
from chainfed.core.manifest import Bundle
from chainfed.core.tensors import decode, encode
from chainfed.runtime.prediction import predict
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings, OptimizerName, read_labels
from chainfed.toolchain.memory_probe import measure_peaks
from chainfed.toolchain.merge import merge_bundle
from chainfed.toolchain.verify import verify_bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

_LOGITS = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
batch = tokenizer(json.load(sys.stdin), truncation=True, padding=True, return_tensors="pt")
assert not [name for name in sys.modules if name.split(".")[0] == "chainfed"]
print(json.dumps(model(**batch).logits.tolist()))
"""


def _export(shared: Path, folder: Path, optimizer: OptimizerName) -> Bundle:
    labels = read_labels(str(shared / "data" / "agnews" / "labels.json"))
    model = str(shared / "models" / "minilm-l6")
    return export_bundle(ExportSettings(model, labels, folder / optimizer, seq_len=64, optimizer=optimizer))


@pytest.fixture(scope="module")
def minilm(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """MiniLM for four labels, 8 rows of 64 tokens, AdamW."""
    return _export(shared, tmp_path_factory.mktemp("minilm"), "adamw")


def test_every_program_agrees_with_eager_for_adamw(minilm: Bundle, shared: Path) -> None:
    _assert_agrees(minilm, shared)


def test_every_program_agrees_with_eager_for_sgd(shared: Path, tmp_path: Path) -> None:
    _assert_agrees(_export(shared, tmp_path, "sgd"), shared)


def _assert_agrees(bundle: Bundle, shared: Path) -> None:
    verification = verify_bundle(bundle, shared / "data" / "agnews" / "test.jsonl.gz")
    assert set(verification.programs) >= {"window_q1", "window_q2", "window_q3"}
    assert verification.ok, {name: (report.max_error, report.worst) for name, report in verification.programs.items()}


def test_the_merged_model_gives_the_logits_of_the_programs(minilm: Bundle, shared: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    state = decode(minilm.path("adapters.safetensors").read_bytes(), "state")
    state = {
        name: tensor + (generator.normal(size=tensor.shape) * 0.05).astype(np.float32) for name, tensor in state.items()
    }
    (tmp_path / "adapters").write_bytes(encode(state))
    merged = merge_bundle(minilm, tmp_path / "adapters", tmp_path / "merged")
    data = shared / "data" / "agnews" / "test.jsonl.gz"
    examples = read_examples(data, minilm.manifest.task.labels)[:24]
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LOGITS, str(merged)],
        input=json.dumps([example.text for example in examples]),
        env=os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    expected = predict(minilm, state, examples).logits
    assert float(np.abs(np.array(json.loads(finished.stdout)) - expected).max()) < 1e-4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous memory")
def test_the_memory_plan_holds_when_it_is_measured_again(minilm: Bundle) -> None:
    manifest = minilm.manifest
    programs = {f"window_q{size}": plan for size, plan in manifest.windows.items()}
    entries = {name: manifest.programs[name] for name in programs}
    peaks = measure_peaks({name: (minilm.path(entry.file), entry) for name, entry in entries.items()})
    for name, plan in programs.items():
        assert peaks[name] == pytest.approx(plan.anonymous_bytes, rel=0.15), name
