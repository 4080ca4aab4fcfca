"""Files that an operator replaces while the coordinator serves."""

from __future__ import annotations

from pathlib import Path


class WatchedFiles:
    """Says whether files differ from when it was asked before, by time, length or inode. The first answer is yes."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen: object = None

    def changed(self) -> bool:
        """Whether a file was written, replaced, removed or made since the last call. Ask before reading."""
        now = tuple(_stamp(path) for path in self._paths)
        before, self._seen = self._seen, now
        return now != before


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
