"""The memory that a device takes is the memory that the bundle's plan says, for every window size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chainfed.core.manifest import Bundle
from chainfed.core.tensors import decode, encode, sha256_hex, split_pieces
from chainfed.runtime import memory

TOLERANCE = 0.15
SLACK_BYTES = 400_000  # What a first use of torch or of the allocator costs, whatever the model.

_MEASURE = """
import json, sys
from pathlib import Path
from chainfed.core.examples import Example
from chainfed.core.manifest import Bundle
from chainfed.harness.assignment import compute, open_journal
from chainfed.harness.bundle import DeviceBundle
from chainfed.harness.data import tokenize
from chainfed.harness.storage import DeviceStorage
from chainfed.runtime.program import set_threads
from chainfed.runtime.tokenization import Tokenizer
from chainfed.v1 import device_service_pb2 as pb

folder, bundle = Path(sys.argv[1]), Bundle(Path(sys.argv[2]))
manifest = bundle.manifest
set_threads(1)
tokenizer = Tokenizer(bundle.path("tokenizer.json"), manifest.tokenizer.pad_token_id, manifest.shapes.seq_len)
rows = [Example("cat dog soup " * 30, 0)] * (3 * manifest.shapes.batch_size - 1)
data = tokenize(rows, tokenizer, manifest.shapes.batch_size)
pieces = {path.stem: path for path in map(Path, json.loads(sys.argv[3]))}
paths = {name: bundle.path(name) for name in manifest.files}
device_bundle = DeviceBundle(manifest, bundle.manifest_sha256, paths)
peaks = {}
with DeviceStorage(folder / "state", None) as storage:
    for size in [*manifest.windows, *manifest.windows]:
        first = manifest.model.num_layers - size
        train = pb.TrainTask(first_layer=first, window_size=size, local_epochs=1, adapter_lr=1e-3, head_lr=1e-3)
        assignment = pb.Assignment(assignment_id=f"{len(peaks):032x}", foat_start=first, train=train)
        storage.forget_other_work("")
        journal = open_journal(storage, assignment, data)
        found = compute(storage, assignment, device_bundle, pieces, data, journal, 0, lambda message: None)
        peaks.setdefault(size, []).append(found.usage.peak_anonymous_bytes)
print(json.dumps(peaks))
"""


def measured_peaks(bundle: Bundle, folder: Path) -> dict[int, list[int]]:
    """Peak anonymous bytes over idle of a device's training rounds, twice for each window size, in one process."""
    state = decode(bundle.path("adapters.safetensors").read_bytes(), "adapters")
    pieces = []
    for name, tensors in split_pieces(state).items():
        data = encode(tensors)
        pieces.append(str(folder / f"{name}.{sha256_hex(data)[:8]}"))
        Path(pieces[-1]).write_bytes(data)
    arguments = [sys.executable, "-c", _MEASURE, str(folder), str(bundle.folder), json.dumps(pieces)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return {int(size): peaks for size, peaks in json.loads(found.stdout).items()}


def check_plan(bundle: Bundle, folder: Path) -> None:
    for size, peaks in measured_peaks(bundle, folder).items():
        planned = bundle.manifest.round_bytes(size)
        for peak in peaks:
            assert abs(peak - planned) <= TOLERANCE * planned + SLACK_BYTES, (size, peak, planned)


pytestmark = pytest.mark.skipif(memory.anonymous_bytes() == 0, reason="the system does not tell RssAnon")


def test_the_plan_of_a_tiny_bundle_holds(tiny_bundle: Bundle, tmp_path: Path) -> None:
    check_plan(tiny_bundle, tmp_path)


@pytest.mark.slow
def test_the_plan_of_a_real_model_holds(shared: Path, tmp_path: Path) -> None:
    from chainfed.toolchain.export import export_bundle
    from chainfed.toolchain.export_settings import ExportSettings

    settings = ExportSettings(
        str(shared / "models" / "minilm-l6"), ("a", "b"), tmp_path / "bundle", seq_len=64, windows=(1, 2, 3)
    )
    check_plan(export_bundle(settings), tmp_path)
