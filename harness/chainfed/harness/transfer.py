"""Bytes between device and coordinator: downloads resume and are verified, uploads resume and may be repeated."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from chainfed.core.errors import BundleError, ConflictError
from chainfed.core.rpc import CHUNK_BYTES
from chainfed.core.signing import update_text
from chainfed.core.tensors import sha256_file
from chainfed.harness.client import CALL_SECONDS, Coordinator
from chainfed.v1 import blob_pb2
from chainfed.v1 import device_service_pb2 as pb

_SLOWEST_BYTES_PER_SECOND = 50_000
_CONFLICTS = 3


class BlobFolder:
    """Fetched blobs under their SHA-256. Whatever carries its final name is whole and was verified.

    Several devices of one machine may share a folder: a blob is fetched by one of them, the others wait for it.
    """

    def __init__(self, folder: Path) -> None:
        """Makes the folder when it is absent."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._verified: set[str] = set()

    def fetch(self, coordinator: Coordinator, ref: blob_pb2.BlobRef, what: str) -> tuple[Path, int]:
        """The blob's path, and the bytes that came over the network for it.

        A blob that is there already is verified once in a process. Raises BundleError, naming `what`, when the
        coordinator sends other bytes twice; UnreachableError when it does not answer.
        """
        path = self.folder / ref.sha256
        if path.is_file() and (ref.sha256 in self._verified or _is_whole(path, ref)):
            self._verified.add(ref.sha256)
            return path, 0
        part = self.folder / f"{ref.sha256}.part"
        with part.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.is_file() and _is_whole(path, ref):
                part.unlink(missing_ok=True)
                self._verified.add(ref.sha256)
                return path, 0
            received = 0
            for _ in range(2):
                received += _download(coordinator, ref, file)
                file.flush()
                if _is_whole(part, ref):
                    part.replace(path)
                    self._verified.add(ref.sha256)
                    return path, received
                file.truncate(0)
        raise BundleError(
            f"The coordinator at {coordinator.address} sends bytes for {what} that do not have its SHA-256; "
            "its copy is damaged: export the bundle again and create a new run."
        )

    def keep_only(self, names: set[str]) -> None:
        """Removes every blob that is not named, and what was left of broken downloads."""
        for path in self.folder.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)


def upload(
    coordinator: Coordinator, assignment_id: str, path: Path, sha256: str, metrics: pb.UpdateMetrics
) -> tuple[bool, int]:
    """Hands in an update, going on where an earlier attempt stopped.

    Returns whether it counts (False: its round had closed) and the bytes that were sent. Repeating it is safe.
    """
    size = path.stat().st_size
    sent = 0
    signature = coordinator.sign(update_text(assignment_id, sha256, metrics.num_examples))
    query = pb.QueryUploadRequest(device_id=coordinator.device_id, assignment_id=assignment_id, sha256=sha256)

    def stream(offset: int) -> Iterator[pb.SubmitUpdateRequest]:
        nonlocal sent
        update = blob_pb2.BlobRef(sha256=sha256, size_bytes=size)
        header = pb.UpdateHeader(
            device_id=coordinator.device_id,
            assignment_id=assignment_id,
            update=update,
            offset=offset,
            metrics=metrics,
            signature=signature,
        )
        yield pb.SubmitUpdateRequest(header=header)
        with path.open("rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                sent += len(chunk)
                yield pb.SubmitUpdateRequest(chunk=chunk)

    def submit() -> bool:
        state = coordinator.stub.QueryUpload(query, timeout=CALL_SECONDS)
        if state.accepted:
            return True
        response = coordinator.stub.SubmitUpdate(stream(state.received_bytes), timeout=_seconds_for(size))
        return bool(response.counted)

    for _ in range(_CONFLICTS):
        with contextlib.suppress(ConflictError):  # The coordinator has less than it said, or a newer attempt took over.
            return coordinator.attempt(submit, lambda: sent), sent
    return coordinator.attempt(submit, lambda: sent), sent


def _download(coordinator: Coordinator, ref: blob_pb2.BlobRef, file: BinaryIO) -> int:
    """Appends what is missing of a blob to `file` and returns how many bytes came."""
    received = 0

    def receive() -> None:
        nonlocal received
        offset = file.seek(0, os.SEEK_END)
        if offset >= ref.size_bytes > 0:
            return
        request = pb.FetchBlobRequest(device_id=coordinator.device_id, sha256=ref.sha256, offset=offset)
        stream = coordinator.stub.FetchBlob(request, timeout=_seconds_for(ref.size_bytes))
        for piece in stream:
            offset += len(piece.data)
            if offset > ref.size_bytes:
                stream.cancel()
                return
            file.write(piece.data)
            received += len(piece.data)

    coordinator.attempt(receive, lambda: received)
    return received


def _is_whole(path: Path, ref: blob_pb2.BlobRef) -> bool:
    return path.stat().st_size == ref.size_bytes and sha256_file(path) == ref.sha256


def _seconds_for(num_bytes: int) -> float:
    return CALL_SECONDS + num_bytes / _SLOWEST_BYTES_PER_SECOND
