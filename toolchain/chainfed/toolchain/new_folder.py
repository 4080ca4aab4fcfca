"""Output folders that appear complete or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
from functools import partial
from pathlib import Path
from types import TracebackType

from chainfed.core.errors import AddressInUseError, BadInputError
from chainfed.core.manifest import FileEntry
from chainfed.core.tensors import sha256_file, sha256_hex


class NewFolder:
    """A folder that is filled under a temporary name beside its place and renamed when it is complete.

    Use it in a `with` block and call `commit` at its end; without that, nothing is left behind.
    """

    def __init__(self, out: Path, force: bool, mark: str) -> None:
        """`mark`: the file by which a folder is known to be of the kind that `force` may replace.

        Raises BadInputError when `out` exists and may not be replaced.
        """
        self.out = out.absolute()
        self.files: dict[str, FileEntry] = {}
        self._partial = self.out.with_name(f".{self.out.name}.partial")
        self._replaced = self.out.with_name(f".{self.out.name}.replaced")
        self._check = partial(_check_replaceable, out, force, mark)
        self._lock = -1
        self._committed = False
        self._check()

    def __enter__(self) -> NewFolder:
        """Makes the temporary folder, and clears away what a killed process left.

        Raises BadInputError when the folder cannot be made or, after all, `out` may not be replaced, and
        AddressInUseError when another process is writing the same folder.
        """
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._make_partial()
            self._recover()
        except OSError as error:
            raise BadInputError(
                f"{self.out} cannot be made ({error.strerror}); give an --out in a folder that you may write."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was not committed."""
        if not self._committed:
            shutil.rmtree(self._partial, ignore_errors=True)
        self._unlock()

    def path(self, name: str) -> Path:
        """Where a file lies for now; its parent is made. Call `add` when something else wrote it."""
        path = self._partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def write(self, name: str, data: bytes) -> FileEntry:
        """Writes a file and enters it in `files`."""
        self.path(name).write_bytes(data)
        self.files[name] = FileEntry(bytes=len(data), sha256=sha256_hex(data))
        return self.files[name]

    def add(self, name: str) -> FileEntry:
        """Enters a file that lies at `path(name)` in `files`."""
        path = self._partial / name
        self.files[name] = FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path))
        return self.files[name]

    def commit(self) -> None:
        """Puts the folder in its place; one that it replaces is removed last."""
        if self.out.exists():
            self.out.rename(self._replaced)
        self._partial.rename(self.out)
        self._committed = True
        shutil.rmtree(self._replaced, ignore_errors=True)

    def _make_partial(self) -> int:
        """The temporary folder, empty, and a lock on it that the system lets go of when this process ends, however."""
        while True:
            self._partial.mkdir(exist_ok=True)
            lock = os.open(self._partial, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise AddressInUseError(
                    f"Another process is writing {self.out} right now; wait for it, or give another --out."
                ) from error
            except OSError:
                break  # a file system without locks
            if _is_open_at(lock, self._partial):
                break
            os.close(lock)  # the process that had it put it in its place meanwhile
        for left in self._partial.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        return lock

    def _recover(self) -> None:
        """Ends a replacement in whose middle a process was killed: the folder that was there is back in its place."""
        if not self._replaced.exists():
            return
        if self.out.exists():
            shutil.rmtree(self._replaced)
            return
        self._replaced.rename(self.out)
        try:
            self._check()
        except BadInputError:
            self.__exit__(None, None, None)
            raise

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _is_open_at(handle: int, path: Path) -> bool:
    """Whether an open folder still lies at a path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _check_replaceable(out: Path, force: bool, mark: str) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise BadInputError(f"{out} is a file; give --out a folder that does not exist yet.")
    if not force:
        raise BadInputError(f"{out} exists already; give another --out, or --force to replace it.")
    if not (out / mark).is_file():
        raise BadInputError(
            f"{out} is not replaced, because it has no {mark} and so was not written by this command; give "
            f"another --out."
        )
