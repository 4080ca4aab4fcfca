"""A bundle without real programs, and devices that answer with drawn numbers: what the coordinator's tests
need instead of a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from chainfed.coordinator.app import in_background
from chainfed.coordinator.client import OperatorClient
from chainfed.core.errors import ChainFedError
from chainfed.core.manifest import (
    ADAPTERS_FILE,
    EMBEDDINGS_FILE,
    MANIFEST_FILE,
    TOKENIZER_FILE,
    Bundle,
    FileEntry,
    Manifest,
    layer_file,
)
from chainfed.core.rpc import CHANNEL_OPTIONS, error_of
from chainfed.core.signing import SigningKey, evaluation_text, profile_text, update_text
from chainfed.core.tensors import Tensors, decode, encode, sha256_hex, state_shapes
from chainfed.v1 import blob_pb2
from chainfed.v1 import device_service_pb2 as pb
from chainfed.v1 import device_service_pb2_grpc as pb_grpc
from chainfed.v1 import run_service_pb2 as run_pb

LAYERS, HIDDEN, BOTTLENECK, LABELS = 4, 6, 2, 3


def plan(anonymous_bytes: int) -> dict[str, int]:
    """A memory plan whose whole is given."""
    return {
        "anonymous_bytes": anonymous_bytes,
        "arena_bytes": anonymous_bytes,
        "workspace_bytes": 0,
        "optimizer_bytes": 0,
        "io_bytes": 0,
        "file_bytes": 1000,
    }


def make_manifest(files: dict[str, FileEntry], **changes: Any) -> Manifest:
    """The manifest of a model of 4 layers with windows of 1, 2 and 3 layers that need 1, 2 and 3 MB."""
    names = ("embed", "block", "pool", "head", "score", "window_q1", "window_q2", "window_q3")
    raw: dict[str, Any] = {
        "format": "chainfed-bundle",
        "format_version": 1,
        "created_by": {"chainfed": "test"},
        "model": {
            "family": "bert",
            "num_layers": LAYERS,
            "hidden_size": HIDDEN,
            "vocab_size": 10,
            "num_parameters": 1000,
            "embedding_tensors": ["word"],
            "layer_tensors": ["weight"],
        },
        "task": {"kind": "classification", "labels": ["a", "b", "c"], "pooling": "mean"},
        "tokenizer": {"pad_token_id": 0},
        "shapes": {"batch_size": 2, "seq_len": 8},
        "adapter": {"bottleneck": BOTTLENECK},
        "optimizer": {
            "name": "adamw",
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
        },
        "defaults": {
            "adapter_lr": 1e-3,
            "head_lr": 3e-3,
            "final_head_lr": 0.0,
            "global_loss_weight": 0.1,
            "global_branch_statistics": "window_end",
            "foat_threshold": 0.8,
            "foat_examples": 8,
            "warmup_rounds": 1,
            "local_epochs": 1,
        },
        "programs": {
            name: {"file": f"programs/{name}.pte", "inputs": [], "outputs": [], "arena_bytes": 10} for name in names
        },
        "windows": {q: plan(q * 1_000_000) for q in (1, 2, 3)},
        "prefix": plan(500_000),
        "files": {name: entry.model_dump() for name, entry in files.items()},
    }
    return Manifest.model_validate(raw | changes)


def make_bundle(folder: Path, **changes: Any) -> Bundle:
    """Writes a bundle whose files are a few bytes each, but whose initial model state is real."""
    shapes = state_shapes(LAYERS, HIDDEN, BOTTLENECK, LABELS)
    rng = np.random.default_rng(7)
    state = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    contents = {ADAPTERS_FILE: encode(state), TOKENIZER_FILE: b"{}", EMBEDDINGS_FILE: b"embeddings"}
    contents |= {layer_file(layer): f"layer {layer}".encode() * 50_000 for layer in range(LAYERS)}
    for name in ("embed", "block", "pool", "head", "score", "window_q1", "window_q2", "window_q3"):
        contents[f"programs/{name}.pte"] = name.encode()
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    entries = {name: FileEntry(bytes=len(data), sha256=sha256_hex(data)) for name, data in contents.items()}
    (folder / MANIFEST_FILE).write_bytes(make_manifest(entries, **changes).to_json())
    return Bundle(folder)


@dataclass
class FakeDevice:
    """A device that speaks the protocol and answers each task with numbers drawn from the assignment's
    seed.

    `train` may be replaced: it gets the assignment and the drawn update and returns the update to send,
    None to abandon the work, or raises.
    """

    address: str
    key: str
    num_train: int = 10
    num_test: int = 5
    budget: int = 0
    scores: tuple[float, ...] = (0.95, 0.7, 0.6, 0.5)
    train: Callable[[pb.Assignment, Tensors], Tensors | None] = lambda assignment, update: update
    abandon_reason: int = pb.ABANDON_REASON_NOT_FINITE
    token: str = ""
    signing_key: SigningKey | None = None
    done: list[str] = field(default_factory=list)
    seen: list[pb.Assignment] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.connect(self.address)

    def connect(self, address: str) -> None:
        """Opens a connection of its own and enrols."""
        self.address = address
        self.channel = grpc.insecure_channel(
            address,
            options=(*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)),
        )
        self.service = pb_grpc.DeviceServiceStub(self.channel)
        request = pb.EnrolRequest(
            device_key=self.key,
            model="fake",
            bundle_format_version=1,
            enrolment_token=self.token,
            public_key=self.signing_key.public_key if self.signing_key else b"",
        )
        self.device_id = self.service.Enrol(request, timeout=10, wait_for_ready=True).device_id

    def sign(self, text: str) -> bytes:
        """The device's signature; none when it has no key."""
        return self.signing_key.sign(text) if self.signing_key else b""

    def check_in(self, timeout: float = 2.0) -> pb.CheckInResponse:
        """Asks for work."""
        request = pb.CheckInRequest(
            device_id=self.device_id,
            memory_budget_bytes=self.budget,
            num_train_examples=self.num_train,
            num_test_examples=self.num_test,
        )
        return self.service.CheckIn(request, timeout=timeout, wait_for_ready=True)

    def assignment(self, seconds: float = 20.0) -> pb.Assignment:
        """The next assignment. Raises AssertionError when none comes."""
        for _ in range(int(seconds / 1.0)):
            answer = self.check_in()
            if answer.HasField("assignment"):
                return answer.assignment
        raise AssertionError(f"no assignment for {self.key}: {answer}")

    def fetch(self, blob: blob_pb2.BlobRef, offset: int = 0) -> bytes:
        """A blob's bytes from an offset."""
        request = pb.FetchBlobRequest(device_id=self.device_id, sha256=blob.sha256, offset=offset)
        return b"".join(piece.data for piece in self.service.FetchBlob(request, timeout=20))

    def work(self, assignment: pb.Assignment) -> None:
        """Does one assignment."""
        self.seen.append(assignment)
        ids = {"device_id": self.device_id, "assignment_id": assignment.assignment_id}
        task = assignment.WhichOneof("task")
        rng = np.random.default_rng(assignment.seed)
        if task == "profile":
            self.service.SubmitProfile(self.profile(assignment, rng), timeout=20)
        elif task == "evaluate":
            self.service.SubmitEvaluation(self.evaluation(assignment), timeout=20)
        else:
            update = self.train(assignment, self.draw(assignment))
            if update is None:
                request = pb.AbandonRequest(**ids, reason=self.abandon_reason, detail="the loss is nan")
                self.service.Abandon(request, timeout=20)
            else:
                self.submit(assignment, encode(update))
        self.done.append(assignment.assignment_id)

    def profile(self, assignment: pb.Assignment, rng: np.random.Generator) -> pb.SubmitProfileRequest:
        """A profile with this device's scores and drawn statistics."""
        statistics = {}
        for layer in range(LAYERS):
            statistics[f"statistics.{layer}.mean"] = rng.normal(size=HIDDEN).astype(np.float32)
            statistics[f"statistics.{layer}.variance"] = rng.uniform(0.5, 2.0, size=HIDDEN).astype(np.float32)
        data, count = encode(statistics), min(self.num_train, assignment.profile.max_examples)
        return pb.SubmitProfileRequest(
            device_id=self.device_id,
            assignment_id=assignment.assignment_id,
            num_examples=count,
            scores=self.scores,
            statistics=data,
            signature=self.sign(profile_text(assignment.assignment_id, sha256_hex(data), count, self.scores)),
        )

    def evaluation(self, assignment: pb.Assignment) -> pb.SubmitEvaluationRequest:
        """Counts of this device's held-out examples."""
        return pb.SubmitEvaluationRequest(
            device_id=self.device_id,
            assignment_id=assignment.assignment_id,
            num_examples=self.num_test,
            num_correct=2,
            loss_sum=1.5,
            signature=self.sign(evaluation_text(assignment.assignment_id, self.num_test, 2, 1.5)),
        )

    def draw(self, assignment: pb.Assignment) -> Tensors:
        """An update of the right names and shapes, after fetching the state that it starts from."""
        state: Tensors = {}
        for piece in assignment.state:
            state |= decode(self.fetch(piece.blob), piece.name)
        train = assignment.train
        end = train.first_layer + train.window_size - 1
        if assignment.WhichOneof("task") == "warmup":
            pieces = [f"heads.{layer}" for layer in assignment.warmup.head_layers]
        else:
            pieces = [f"adapters.{layer}" for layer in range(train.first_layer, end + 1)] + [f"heads.{end}"]
        rng = np.random.default_rng(assignment.seed)
        return {
            name: (0.01 * rng.normal(size=state[name].shape)).astype(np.float32)
            for name in sorted(state)
            if name.rpartition(".")[0] in pieces
        }

    def header(self, assignment: pb.Assignment, data: bytes, offset: int = 0, **changes: Any) -> pb.SubmitUpdateRequest:
        """The first message of an upload."""
        values: dict[str, Any] = {
            "device_id": self.device_id,
            "assignment_id": assignment.assignment_id,
            "update": blob_pb2.BlobRef(sha256=sha256_hex(data), size_bytes=len(data)),
            "offset": offset,
            "metrics": self.metrics(),
            "signature": self.sign(update_text(assignment.assignment_id, sha256_hex(data), self.num_train)),
        }
        return pb.SubmitUpdateRequest(header=pb.UpdateHeader(**values | changes))

    def metrics(self) -> pb.UpdateMetrics:
        """What the device says it measured."""
        return pb.UpdateMetrics(
            num_examples=self.num_train, num_steps=5, loss=0.5, local_loss=0.4, accuracy=0.5, peak_anonymous_bytes=100
        )

    def submit(self, assignment: pb.Assignment, data: bytes, offset: int = 0, **changes: Any) -> bool:
        """Uploads an update from an offset; whether it counted."""

        def messages() -> Iterator[pb.SubmitUpdateRequest]:
            yield self.header(assignment, data, offset, **changes)
            for start in range(offset, len(data), 300):
                yield pb.SubmitUpdateRequest(chunk=data[start : start + 300])

        return self.service.SubmitUpdate(messages(), timeout=20).counted

    def query(self, assignment: pb.Assignment, data: bytes) -> pb.QueryUploadResponse:
        """How far an upload is."""
        ids = {"device_id": self.device_id, "assignment_id": assignment.assignment_id}
        return self.service.QueryUpload(pb.QueryUploadRequest(**ids, sha256=sha256_hex(data)), timeout=20)

    def live(self, stop: threading.Event) -> None:
        """Works until every run has ended; survives a coordinator that goes away and comes back."""
        while not stop.is_set():
            try:
                answer = self.check_in()
                if answer.HasField("finished"):
                    return
                if answer.HasField("assignment"):
                    self.work(answer.assignment)
            except grpc.RpcError as failure:
                if failure.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    error = error_of(failure, self.address)
                    if error.code not in ("UPDATE_REJECTED", "CONFLICT"):
                        raise
                stop.wait(0.1)


@contextmanager
def living(*devices: FakeDevice) -> Iterator[None]:
    """Devices at work, each in a thread."""
    stop = threading.Event()
    threads = [threading.Thread(target=device.live, args=(stop,), daemon=True) for device in devices]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(5)


def config(**changes: Any) -> run_pb.RunConfig:
    """A short run over three devices."""
    values = {"rounds": 3, "devices_per_round": 3, "min_devices": 3, "seed": 11, "window_size": 2}
    return run_pb.RunConfig(**values | changes)


@contextmanager
def raised(error_class: type[ChainFedError]) -> Iterator[pytest.ExceptionInfo[ChainFedError]]:
    """Expects a call to fail with the status and the code of a class of the error tree."""
    with pytest.raises(error_class) as found:
        try:
            yield found
        except grpc.RpcError as failure:
            raise error_of(failure, "test") from failure


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle."""
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A running coordinator's address."""
    with in_background(tmp_path / "state") as listening:
        yield listening


@pytest.fixture
def operator(address: str) -> Iterator[OperatorClient]:
    """A client of the running coordinator."""
    with OperatorClient(address) as client:
        yield client
