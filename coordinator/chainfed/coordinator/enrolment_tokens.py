"""The tokens with which devices that are not known yet are admitted."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from chainfed.coordinator.watched_files import WatchedFiles
from chainfed.core.errors import BadInputError

log = logging.getLogger(__name__)

LONGEST_TOKEN = 4096


class EnrolmentTokens:
    """The tokens in a file: one a line, `#` begins a comment line. The file is read again when it has changed.

    While it cannot be read, no token is valid.
    """

    def __init__(self, path: Path) -> None:
        """Raises BadInputError when the file cannot be used."""
        self._path = path
        self._watched = WatchedFiles(path)
        self._watched.changed()
        self._digests = _read(path)

    def admits(self, token: str) -> bool:
        """Whether a token is one of the file's. It takes as long for every token of a length, right or wrong."""
        if self._watched.changed():
            self._reread()
        given = _digest(token)
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, given)
        return found

    def _reread(self) -> None:
        try:
            self._digests = _read(self._path)
        except BadInputError as error:
            self._digests = []
            log.error("no new device is admitted", extra={"detail": str(error)})
        else:
            log.info("enrolment tokens read", extra={"tokens": len(self._digests)})


def _read(path: Path) -> list[bytes]:
    """The SHA-256 of every token."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise BadInputError(
            f"The file of enrolment tokens {path} cannot be read ({reason}); give a text file with one token a line."
        ) from error
    tokens = {number: line.strip() for number, line in enumerate(lines, 1)}
    for number, token in tokens.items():
        if len(token) > LONGEST_TOKEN:
            raise BadInputError(
                f"{path}, line {number} has {len(token)} characters, but a token has at most {LONGEST_TOKEN}."
            )
    return [_digest(token) for token in tokens.values() if token and not token.startswith("#")]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
