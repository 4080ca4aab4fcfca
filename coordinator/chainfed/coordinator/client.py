"""The operator's side of the protocol: what `chainfed run` and an emulation say to a coordinator."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import grpc

from chainfed.core.errors import ChainFedError, NotFoundError, RunFailedError, UnreachableError
from chainfed.core.manifest import Bundle
from chainfed.core.rpc import CHANNEL_OPTIONS, CHUNK_BYTES, error_of
from chainfed.core.tensors import sha256_hex
from chainfed.core.transport import Transport, choose_transport
from chainfed.v1 import blob_pb2
from chainfed.v1 import run_service_pb2 as pb
from chainfed.v1 import run_service_pb2_grpc as pb_grpc

CALL_SECONDS = 60.0
TRANSFER_SECONDS = 3600.0

Progress = Callable[[int, int], None]


class OperatorClient:
    """Calls the RunService at `address` (HOST:PORT); a context manager. Not bound to a thread.

    Without a `transport` it speaks in plain text to this machine and TLS to every other. Every method raises
    UnreachableError when no coordinator answers there, and otherwise the error that the coordinator raised.
    """

    def __init__(self, address: str, transport: Transport | None = None) -> None:
        self.address = address
        self._channel = _channel(address, transport or choose_transport(address))
        self._service = pb_grpc.RunServiceStub(self._channel)

    def __enter__(self) -> OperatorClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as failure:
            raise error_of(failure, self.address) from failure

    def upload_bundle(self, bundle: Bundle, progress: Progress | None = None) -> blob_pb2.BlobRef:
        """Stores the bundle's files that the coordinator does not have; returns the reference to its
        manifest.

        `progress` hears bytes sent and bytes to send. Raises BadInputError when a file is not what the
        manifest says.
        """
        files = {entry.sha256: (entry.bytes, bundle.folder / path) for path, entry in bundle.manifest.files.items()}
        references = [blob_pb2.BlobRef(sha256=sha256, size_bytes=size) for sha256, (size, _) in files.items()]
        manifest = blob_pb2.BlobRef(sha256=bundle.manifest_sha256, size_bytes=len(bundle.manifest_bytes))
        with self._errors():
            request = pb.FindMissingBlobsRequest(blobs=[*references, manifest])
            missing = self._service.FindMissingBlobs(request, timeout=CALL_SECONDS).missing
            total, sent = sum(blob.size_bytes for blob in missing), 0
            for blob in missing:
                data = [bundle.manifest_bytes] if blob.sha256 == manifest.sha256 else _pieces(files[blob.sha256][1])
                self._service.PutBlob(_blob_requests(blob, data), timeout=TRANSFER_SECONDS)
                sent += blob.size_bytes
                if progress is not None:
                    progress(sent, total)
        return manifest

    def create(self, bundle: Bundle, config: pb.RunConfig, name: str = "", progress: Progress | None = None) -> pb.Run:
        """Uploads what is missing of the bundle and creates a run over it."""
        manifest = self.upload_bundle(bundle, progress)
        request = pb.CreateRunRequest(manifest=manifest, config=config, name=name, request_id=uuid.uuid4().hex)
        with self._errors():
            return self._service.CreateRun(request, timeout=CALL_SECONDS).run

    def start(self, run_id: str) -> pb.Run:
        """Lets a created run begin."""
        with self._errors():
            return self._service.StartRun(pb.StartRunRequest(run_id=run_id), timeout=CALL_SECONDS).run

    def pause(self, run_id: str) -> pb.Run:
        """Holds a run."""
        with self._errors():
            return self._service.PauseRun(pb.PauseRunRequest(run_id=run_id), timeout=CALL_SECONDS).run

    def resume(self, run_id: str) -> pb.Run:
        """Lets a paused run go on."""
        with self._errors():
            return self._service.ResumeRun(pb.ResumeRunRequest(run_id=run_id), timeout=CALL_SECONDS).run

    def cancel(self, run_id: str) -> pb.Run:
        """Ends a run."""
        with self._errors():
            return self._service.CancelRun(pb.CancelRunRequest(run_id=run_id), timeout=CALL_SECONDS).run

    def get(self, run_id: str) -> pb.Run:
        """One run."""
        with self._errors():
            return self._service.GetRun(pb.GetRunRequest(run_id=run_id), timeout=CALL_SECONDS).run

    def list(self) -> tuple[pb.Run, ...]:
        """All runs, newest first."""
        with self._errors():
            return tuple(self._service.ListRuns(pb.ListRunsRequest(), timeout=CALL_SECONDS).runs)

    def watch(
        self, run_id: str, from_sequence: int = 0, patience_seconds: float = 0.0
    ) -> Iterator[pb.WatchRunResponse]:
        """The run's events from a sequence number on, until it ends.

        When the coordinator goes away, it is tried again for `patience_seconds`, and no event is missed or
        told twice.
        """
        give_up = time.monotonic() + patience_seconds
        while True:
            try:
                with self._errors():
                    request = pb.WatchRunRequest(run_id=run_id, from_sequence=from_sequence)
                    for event in self._service.WatchRun(request):
                        yield event
                        from_sequence = event.sequence + 1
                        give_up = time.monotonic() + patience_seconds
                    return
            except UnreachableError:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(0.2)

    def checkpoint(self, run_id: str, rounds_done: int | None = None) -> bytes:
        """A checkpoint's safetensors bytes; the newest when `rounds_done` is None. Raises NotFoundError
        when there is none."""
        reference, pieces = None, []
        with self._errors():
            request = pb.GetCheckpointRequest(run_id=run_id, rounds_done=rounds_done)
            for response in self._service.GetCheckpoint(request, timeout=TRANSFER_SECONDS):
                reference = reference or response.checkpoint
                pieces.append(response.data)
        data = b"".join(pieces)
        if reference is None:
            raise NotFoundError(f"The coordinator at {self.address} sent no checkpoint of run {run_id}.")
        if sha256_hex(data) != reference.sha256:
            raise ChainFedError(f"The checkpoint from {self.address} was damaged on its way; fetch it again.")
        return data


def require_success(run: pb.Run) -> None:
    """Raises RunFailedError, with the run's reason, when the run failed."""
    if run.state == pb.RUN_STATE_FAILED:
        raise RunFailedError(run.reason)


def _channel(address: str, transport: Transport) -> grpc.Channel:
    if not transport.encrypted:
        return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(transport.root_certificates)
    return grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


def _blob_requests(blob: blob_pb2.BlobRef, data: Iterator[bytes] | list[bytes]) -> Iterator[pb.PutBlobRequest]:
    yield pb.PutBlobRequest(blob=blob)
    for piece in data:
        for start in range(0, len(piece), CHUNK_BYTES):
            yield pb.PutBlobRequest(chunk=piece[start : start + CHUNK_BYTES])
