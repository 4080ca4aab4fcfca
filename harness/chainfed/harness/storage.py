"""A device's state folder: its keys, fetched blobs, work in progress, kept hidden states; for one process at a time."""

from __future__ import annotations

import fcntl
import json
import shutil
import uuid
from pathlib import Path
from types import TracebackType

from chainfed.core.errors import AddressInUseError, BadInputError
from chainfed.core.signing import SigningKey
from chainfed.harness.transfer import BlobFolder

_IDENTITY_FILE = "device.json"
_SIGNING_KEY_FILE = "device-key.pem"
_LOCK_FILE = "lock"


class DeviceStorage:
    """The folder, locked while the context is open.

    files: blobs of bundles, kept from run to run. pieces: blobs of the model state, kept while the newest assignment
    names them. work: one folder for each assignment under way. cache: hidden states that outlive a round.
    """

    def __init__(self, folder: Path, files_folder: Path | None) -> None:
        """Makes the folder when it is absent.

        Raises BadInputError when it cannot be made, AddressInUseError when another device holds it.
        """
        self.folder = folder
        self.work = folder / "work"
        self.cache = folder / "cache"
        try:
            for path in (self.work, self.cache):
                path.mkdir(parents=True, exist_ok=True)
            self.files = BlobFolder(files_folder if files_folder is not None else folder / "files")
            self.pieces = BlobFolder(folder / "pieces")
            self._lock = (folder / _LOCK_FILE).open("w")
        except OSError as error:
            raise BadInputError(f"The state folder {folder} cannot be used ({error}); give another --state.") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise AddressInUseError(
                f"Another device works in {folder}; end it or give another --state folder."
            ) from error

    def __enter__(self) -> DeviceStorage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.close()

    def device_key(self, wanted: str | None) -> str:
        """The device's key: `wanted`, or the one it had before, or a new one; kept from now on.

        Raises BadInputError when it is not 1 to 128 printable ASCII characters.
        """
        path = self.folder / _IDENTITY_FILE
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))["device_key"]
        except (OSError, ValueError, KeyError, TypeError):
            kept = None
        key = wanted or kept or uuid.uuid4().hex
        if not (isinstance(key, str) and 1 <= len(key) <= 128 and key.isascii() and key.isprintable()):
            raise BadInputError(
                f"The device key {key!r} is not 1 to 128 printable ASCII characters; give another --key."
            )
        if key != kept:
            part = path.with_suffix(".part")
            part.write_text(json.dumps({"device_key": key}) + "\n", encoding="utf-8")
            part.replace(path)
        return key

    def signing_key(self) -> SigningKey:
        """The key that the device signs with, made once and kept from then on.

        Raises BadInputError when what was kept is no such key.
        """
        path = self.folder / _SIGNING_KEY_FILE
        try:
            return SigningKey.kept(path)
        except OSError as error:
            raise BadInputError(f"{path} cannot be used ({error.strerror}); make it readable and writable.") from error

    def forget_other_work(self, assignment_id: str) -> None:
        """Removes what was under way for any other assignment."""
        for path in self.work.iterdir():
            if path.name != assignment_id:
                shutil.rmtree(path, ignore_errors=True)

    def keep_in_cache(self, role: str, path: Path) -> None:
        """Removes every other kept file of this role ("train", "test")."""
        if path.exists():
            for other in self.cache.glob(f"{role}-*"):
                if other != path:
                    other.unlink(missing_ok=True)
