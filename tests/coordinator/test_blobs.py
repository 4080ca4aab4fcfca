"""Blobs and updates on disk."""

import hashlib
from pathlib import Path

import pytest

from chainfed.coordinator.blobs import FolderBlobs, Updates
from chainfed.coordinator.records import Blob
from chainfed.core.errors import BadInputError, ConflictError, NotFoundError, UpdateRejectedError

ASSIGNMENT = "a" * 32


def blob_of(data: bytes) -> Blob:
    return Blob(hashlib.sha256(data).hexdigest(), len(data))


def test_a_blob_is_stored_once_under_its_hash(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    data = b"x" * 600_000
    blob = blobs.put(data)
    assert blob == blob_of(data) == blobs.put(data)
    assert blobs.path(blob.sha256) == tmp_path / blob.sha256[:2] / blob.sha256[2:4] / blob.sha256
    assert blobs.read(blob) == data
    assert b"".join(blobs.chunks(blob.sha256, 300_000)) == data[300_000:]
    assert list(blobs.chunks(blob.sha256, 600_000)) == []


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    with pytest.raises(NotFoundError):
        blobs.read(blob_of(b"never"))
    with pytest.raises(NotFoundError):
        list(blobs.chunks("0" * 64))
    with pytest.raises(BadInputError, match="lies outside"):
        list(blobs.chunks(blobs.put(b"four").sha256, 5))
    with pytest.raises(BadInputError, match="no SHA-256"):
        blobs.path("../../etc/passwd")


@pytest.mark.parametrize("data", [b"other", b"four and more", b"fou"])
def test_a_blob_with_other_bytes_never_appears(tmp_path: Path, data: bytes) -> None:
    blobs, blob = FolderBlobs(tmp_path), blob_of(b"four")
    with pytest.raises(BadInputError), blobs.incoming(blob) as incoming:
        incoming.write(data)
        incoming.finish()
    assert not blobs.has(blob)
    assert not list((tmp_path / "incoming").iterdir())


def test_an_update_goes_on_where_it_stopped(tmp_path: Path) -> None:
    data = b"0123456789"
    update = blob_of(data)
    with Updates(tmp_path).writer(ASSIGNMENT, update, 0) as writer:
        writer.write(data[:4])
    updates = Updates(tmp_path)  # the process was killed and started again
    assert updates.received(ASSIGNMENT, update.sha256) == 4
    with pytest.raises(ConflictError, match="4 have arrived"):
        updates.writer(ASSIGNMENT, update, 5)
    with updates.writer(ASSIGNMENT, update, 4) as writer:
        writer.write(data[4:])
        assert writer.complete
        writer.verify()
        writer.publish()
    assert updates.is_whole(ASSIGNMENT, update)
    assert updates.read(ASSIGNMENT, update) == data


def test_a_newer_upload_takes_over(tmp_path: Path) -> None:
    updates, update = Updates(tmp_path), blob_of(b"0123456789")
    with updates.writer(ASSIGNMENT, update, 0) as older:
        older.write(b"0123")
        with updates.writer(ASSIGNMENT, update, 2) as newer:
            with pytest.raises(ConflictError, match="newer upload"):
                older.write(b"4567")
            newer.write(b"23456789")
            newer.verify()
            newer.publish()
    assert updates.read(ASSIGNMENT, update) == b"0123456789"


def test_a_wrong_update_is_refused(tmp_path: Path) -> None:
    updates, update = Updates(tmp_path), blob_of(b"0123456789")
    with updates.writer(ASSIGNMENT, update, 0) as writer:
        writer.write(b"0123456780")
        with pytest.raises(UpdateRejectedError, match="SHA-256"):
            writer.verify()
        with pytest.raises(UpdateRejectedError, match="more came"):
            writer.write(b"1")
    assert not updates.is_whole(ASSIGNMENT, update)


def test_a_sweep_keeps_what_is_needed(tmp_path: Path) -> None:
    updates = Updates(tmp_path)
    kept, gone = updates.store(ASSIGNMENT, b"kept"), updates.store("b" * 32, b"gone")
    updates.sweep({ASSIGNMENT})
    assert updates.is_whole(ASSIGNMENT, kept)
    assert not updates.is_whole("b" * 32, gone)
