"""Output folders that appear complete or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType

from chainfed.core.errors import BadInputError
from chainfed.core.manifest import FileEntry
from chainfed.core.tensors import sha256_file, sha256_hex


class NewFolder:
    """A folder that is filled under a temporary name beside its place and renamed when it is complete.

    Use it in a `with` block and call `commit` at its end; without that, nothing is left behind.
    """

    def __init__(self, out: Path, force: bool, mark: str) -> None:
        """`mark`: the file by which a folder is known to be of the kind that `force` may replace.

        Raises BadInputError when `out` exists and may not be replaced, or when its parent is no writable
        folder.
        """
        self.out = out.absolute()
        self.files: dict[str, FileEntry] = {}
        self._partial = self.out.with_name(f".{self.out.name}.partial-{os.getpid()}")
        _check_replaceable(out, force, mark)

    def __enter__(self) -> NewFolder:
        """Makes the temporary folder. Raises BadInputError when that is not possible."""
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir()
        except OSError as error:
            raise BadInputError(
                f"{self.out} cannot be made ({error.strerror}); give an --out in a folder that you may write."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes what was not committed."""
        shutil.rmtree(self._partial, ignore_errors=True)

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
        replaced = self.out.with_name(f".{self.out.name}.replaced-{os.getpid()}")
        if self.out.exists():
            self.out.rename(replaced)
        self._partial.rename(self.out)
        shutil.rmtree(replaced, ignore_errors=True)


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
