"""The Python device with one thing broken, as a command: `broken_device.py DEFECT OPTIONS`, for test_interop_cases."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import grpc

from chainfed.core import manifest
from chainfed.core.cli import main
from chainfed.core.errors import BundleError, RunFailedError
from chainfed.harness import chain, client, device, hidden, journal, slots, storage, transfer
from chainfed.v1 import device_service_pb2 as pb


def starts_downloads_anew() -> None:
    """A broken download begins at its first byte again."""

    class Forgetful:
        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def seek(self, *_: int) -> int:
            self.file.truncate(0)
            return 0

        def write(self, data: bytes) -> int:
            return self.file.write(data)

    download = transfer._download
    transfer._download = lambda coordinator, ref, file: download(coordinator, ref, Forgetful(file))  # type: ignore[arg-type]


def _change_query(change: Callable[[pb.QueryUploadResponse], None]) -> None:
    make = client.pb_grpc.DeviceServiceStub

    def changed(channel: grpc.Channel) -> Any:
        stub = make(channel)
        query = stub.QueryUpload

        def ask(request: pb.QueryUploadRequest, timeout: float) -> pb.QueryUploadResponse:
            response = query(request, timeout=timeout)
            change(response)
            return response

        stub.QueryUpload = ask
        return stub

    client.pb_grpc.DeviceServiceStub = changed  # type: ignore[assignment, misc]


def starts_uploads_anew() -> None:
    """A broken upload begins at its first byte again."""

    def nothing_received(response: pb.QueryUploadResponse) -> None:
        if not response.accepted:
            response.received_bytes = 0

    _change_query(nothing_received)


def sends_twice() -> None:
    """An update that was accepted is sent again."""
    _change_query(lambda response: response.Clear())


def insists() -> None:
    """An update that came too late is handed in again."""
    upload = transfer.upload

    def insist(*arguments: Any) -> tuple[bool, int]:
        counted, sent = upload(*arguments)
        return upload(*arguments) if not counted else (counted, sent)

    device.upload = insist


def ends_when_late() -> None:
    """An update that came too late ends the device."""
    upload = transfer.upload

    def refuse(*arguments: Any) -> tuple[bool, int]:
        counted, sent = upload(*arguments)
        if not counted:
            raise RunFailedError("The update came too late.")
        return counted, sent

    device.upload = refuse


def takes_silence_for_success() -> None:
    """An upload without an answer counts as handed in."""
    upload = transfer.upload

    def hope(coordinator: client.Coordinator, *arguments: Any) -> tuple[bool, int]:
        patience, coordinator._patience = coordinator._patience, 0.0
        with suppress(Exception):
            return upload(coordinator, *arguments)
        coordinator._patience = patience
        return True, 0

    device.upload = hope


def forgets_its_journal() -> None:
    """Whatever was done before is done again."""
    journal._read = lambda path: ([], 0)


def loses_weights() -> None:
    """What training carried to the next step is gone after a start."""
    make = slots.StateSlots.__init__

    def begin(self: Any, folder: Path, name: str, entry: Any) -> None:
        for number in (0, 1):
            (folder / f"{name}.{number}").unlink(missing_ok=True)
        make(self, folder, name, entry)

    slots.StateSlots.__init__ = begin  # type: ignore[method-assign]


def loses_hidden_states() -> None:
    """Hidden states are gone after a start."""
    make = hidden.HiddenFile.__init__

    def begin(self: Any, path: Path, *arguments: Any, **more: Any) -> None:
        path.unlink(missing_ok=True)
        make(self, path, *arguments, **more)

    hidden.HiddenFile.__init__ = begin  # type: ignore[method-assign]


def is_impatient() -> None:
    """The first silence of the coordinator ends it."""
    make = client.Coordinator.__init__

    def begin(self: Any, address: str, patience_seconds: float, *arguments: Any) -> None:
        make(self, address, 0.0, *arguments)

    client.Coordinator.__init__ = begin  # type: ignore[method-assign]


def trusts_lengths() -> None:
    """No SHA-256 is looked at."""
    transfer._is_whole = lambda path, ref: path.stat().st_size == ref.size_bytes


def never_gives_up() -> None:
    """Damaged bytes are fetched again and again."""
    fetch = transfer.BlobFolder.fetch

    def again(self: Any, *arguments: Any) -> Any:
        with suppress(BundleError):
            return fetch(self, *arguments)
        return fetch(self, *arguments)

    transfer.BlobFolder.fetch = again  # type: ignore[method-assign]


def shows_its_insides() -> None:
    """A damaged bundle ends it with a traceback."""
    run = device.run_device

    def tell(*arguments: Any, **more: Any) -> Any:
        try:
            return run(*arguments, **more)
        except BundleError:
            traceback.print_exc()
            raise

    device.run_device = tell


def ends_silently() -> None:
    """A damaged bundle is not given back to the coordinator."""
    device._Device._abandon = lambda self, *arguments: None  # type: ignore[method-assign]


def trusts_names() -> None:
    """What carries a blob's name is taken for it."""
    verify = transfer._is_whole
    transfer._is_whole = lambda path, ref: path.name == ref.sha256 or verify(path, ref)


def trusts_kept_states() -> None:
    """Kept hidden states of any length are used."""
    chain.HiddenFile.exists = staticmethod(lambda path, shape, spare=1: path.exists())  # type: ignore[method-assign]


def fetches_everything_again() -> None:
    """Nothing that was fetched outlives the process."""
    make = storage.DeviceStorage.__init__

    def begin(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        for folder in (self.files, self.pieces):
            folder.keep_only(set())

    storage.DeviceStorage.__init__ = begin  # type: ignore[method-assign]


def reads_the_future() -> None:
    """Any format version is taken for a known one."""
    manifest.FORMAT_VERSION = 1000


def is_terse() -> None:
    """A damaged bundle is told of without what would help."""
    run = device.run_device

    def tell(*arguments: Any, **more: Any) -> Any:
        try:
            return run(*arguments, **more)
        except BundleError as error:
            raise BundleError("The bundle of 127.0.0.1:1 cannot be read.") from error

    device.run_device = tell


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    main(["device", *sys.argv[2:]])
