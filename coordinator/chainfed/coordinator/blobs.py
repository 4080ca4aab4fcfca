"""Files of the coordinator: content-addressed blobs, and updates while they arrive and until they are
aggregated.

Both write before they promise: bytes reach the disk (fsync) before a name or a database row points at them.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from chainfed.coordinator.records import Blob
from chainfed.core.errors import BadInputError, ConflictError, NotFoundError, UpdateRejectedError
from chainfed.core.rpc import CHUNK_BYTES
from chainfed.core.tensors import sha256_file

_SHA256 = re.compile("[0-9a-f]{64}")


class FolderBlobs:
    """Blobs in a folder with two levels of names: `ab/cd/abcd...`. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Where a blob lies, whether it is there or not. Raises BadInputError when `sha256` is no 64
        hexadecimal digits."""
        if not _SHA256.fullmatch(sha256):
            raise BadInputError(f"{sha256[:80]!r} is no SHA-256; give 64 lower-case hexadecimal digits.")
        return self._folder / sha256[:2] / sha256[2:4] / sha256

    def size(self, sha256: str) -> int | None:
        """Length in bytes; None when the blob is not there."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def has(self, blob: Blob) -> bool:
        """Whether the blob is there with the length that it should have."""
        return self.size(blob.sha256) == blob.size_bytes

    def read(self, blob: Blob) -> bytes:
        """The bytes. Raises NotFoundError when the blob is not there."""
        try:
            return self.path(blob.sha256).read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"Blob {blob.sha256} does not exist on this coordinator; upload it first.") from error

    def chunks(self, sha256: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes from `offset` on in pieces; nothing when none is left.

        Raises NotFoundError when the blob is not there and BadInputError when `offset` lies outside it.
        """
        size = self.size(sha256)
        if size is None:
            raise NotFoundError(f"Blob {sha256} does not exist on this coordinator; upload it first.")
        if not 0 <= offset <= size:
            raise BadInputError(f"Offset {offset} lies outside blob {sha256} of {size} bytes; give 0 to {size}.")
        with self.path(sha256).open("rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def put(self, data: bytes) -> Blob:
        """Stores bytes, once."""
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        if not self.has(blob):
            with self.incoming(blob) as incoming:
                incoming.write(data)
                incoming.finish()
        return blob

    def incoming(self, blob: Blob) -> IncomingBlob:
        """A writer for a blob that comes in pieces."""
        return IncomingBlob(self._incoming / secrets.token_hex(8), self.path(blob.sha256), blob)


class IncomingBlob:
    """A blob while it is written: a temporary file that takes its name when length and hash are right. A
    context manager."""

    def __init__(self, temporary: Path, target: Path, blob: Blob) -> None:
        self._temporary, self._target, self._blob = temporary, target, blob
        self._hash, self._length = hashlib.sha256(), 0
        self._file = temporary.open("wb")

    def __enter__(self) -> IncomingBlob:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Appends. Raises BadInputError when more comes than was said."""
        self._length += len(data)
        if self._length > self._blob.size_bytes:
            raise BadInputError(
                f"Blob {self._blob.sha256} was said to have {self._blob.size_bytes} bytes, but more came."
            )
        self._hash.update(data)
        self._file.write(data)

    def finish(self) -> None:
        """Makes the blob visible, durably. Raises BadInputError when length or hash are not those said."""
        if self._length != self._blob.size_bytes or self._hash.hexdigest() != self._blob.sha256:
            raise BadInputError(
                f"The {self._length} bytes received are not blob {self._blob.sha256} of "
                f"{self._blob.size_bytes} bytes; "
                "the file was changed or the transfer was damaged: send it again."
            )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._temporary.replace(self._target)
        _sync_folder(self._target.parent)


class Updates:
    """What devices hand in, each in a file `ASSIGNMENT/SHA256.part` that grows while it arrives and goes when
    its round has closed.

    An assignment has one writer at a time: a newer one takes over, because a device that comes back after a
    broken connection must not wait until the server notices the old one's end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, UpdateWriter] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, assignment_id: str, sha256: str) -> Path:
        """Where a whole update lies. Both names have been checked to be hexadecimal."""
        return self._folder / assignment_id / sha256

    def part(self, assignment_id: str, sha256: str) -> Path:
        """Where an update lies while it arrives."""
        return self._folder / assignment_id / f"{sha256}.part"

    def is_whole(self, assignment_id: str, update: Blob) -> bool:
        """Whether all of it has arrived and its hash was right."""
        return self.path(assignment_id, update.sha256).exists()

    def received(self, assignment_id: str, sha256: str) -> int:
        """Bytes that have arrived."""
        for path in (self.path(assignment_id, sha256), self.part(assignment_id, sha256)):
            if path.exists():
                return path.stat().st_size
        return 0

    def read(self, assignment_id: str, update: Blob) -> bytes:
        """An accepted update's bytes."""
        return self.path(assignment_id, update.sha256).read_bytes()

    def store(self, assignment_id: str, data: bytes) -> Blob:
        """Stores a result that came in one message."""
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        with self.writer(assignment_id, blob, 0) as writer:
            writer.write(data)
            writer.verify()
            writer.publish()
        return blob

    def writer(self, assignment_id: str, update: Blob, offset: int) -> UpdateWriter:
        """Goes on with an update at `offset`. Raises ConflictError when fewer bytes than that have
        arrived."""
        received = self.received(assignment_id, update.sha256)
        if offset > received:
            raise ConflictError(
                f"The upload for assignment {assignment_id} cannot go on at byte {offset}: {received} have "
                "arrived; "
                "ask with QueryUpload where to go on."
            )
        (self._folder / assignment_id).mkdir(exist_ok=True)
        writer = UpdateWriter(self, assignment_id, update, offset)
        self._writers[assignment_id] = writer
        return writer

    def is_current(self, writer: UpdateWriter) -> bool:
        """Whether no newer writer has taken over."""
        return self._writers.get(writer.assignment_id) is writer

    def release(self, writer: UpdateWriter) -> None:
        """Forgets a writer that is done."""
        if self.is_current(writer):
            del self._writers[writer.assignment_id]

    def remove(self, assignment_id: str) -> None:
        """Deletes everything that arrived for an assignment."""
        shutil.rmtree(self._folder / assignment_id, ignore_errors=True)

    def sweep(self, needed: Collection[str]) -> None:
        """Deletes what arrived for assignments other than those needed."""
        for folder in self._folder.iterdir():
            if folder.name not in needed:
                self.remove(folder.name)


class UpdateWriter:
    """Appends to an update's file. A context manager that closes it; what has arrived stays."""

    def __init__(self, updates: Updates, assignment_id: str, update: Blob, offset: int) -> None:
        self.assignment_id = assignment_id
        self._updates, self._update, self._length = updates, update, offset
        self._part = updates.part(assignment_id, update.sha256)
        self._file = self._part.open("r+b" if self._part.exists() else "w+b", buffering=0)
        self._file.truncate(offset)
        self._file.seek(offset)

    def __enter__(self) -> UpdateWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._updates.release(self)

    def write(self, data: bytes) -> None:
        """Appends.

        Raises ConflictError when a newer upload has taken over and UpdateRejectedError when more comes than
        was said.
        """
        self.require_current()
        self._length += len(data)
        if self._length > self._update.size_bytes:
            raise UpdateRejectedError(f"The update was said to have {self._update.size_bytes} bytes, but more came.")
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    @property
    def complete(self) -> bool:
        """Whether all bytes have arrived."""
        return self._length == self._update.size_bytes

    def require_current(self) -> None:
        """Raises ConflictError when a newer upload has taken over."""
        if not self._updates.is_current(self):
            raise ConflictError(f"A newer upload for assignment {self.assignment_id} has taken this one's place.")

    def verify(self) -> None:
        """Makes the bytes durable. Raises UpdateRejectedError when their hash is not the one said."""
        os.fsync(self._file.fileno())
        found = sha256_file(self._part)
        if found != self._update.sha256:
            raise UpdateRejectedError(
                f"The update of {self._length} bytes has SHA-256 {found}, but {self._update.sha256} was "
                "said; it does not count."
            )

    def publish(self) -> None:
        """Gives the verified update its final name. Raises ConflictError when a newer upload has taken
        over."""
        self.require_current()
        target = self._updates.path(self.assignment_id, self._update.sha256)
        self._part.replace(target)
        _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
