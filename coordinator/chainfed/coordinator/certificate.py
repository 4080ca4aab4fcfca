"""The certificate that a coordinator shows, and its key."""

from __future__ import annotations

import datetime
import logging
import threading
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from chainfed.coordinator.watched_files import WatchedFiles
from chainfed.core.errors import BadInputError

log = logging.getLogger(__name__)


class ServerCertificate:
    """A certificate with its chain, and the private key: two PEM files, read again when they have changed.

    A pair that cannot be used when it is read again leaves the one before in its place.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises BadInputError, naming the file, when the two cannot be used."""
        self._certificate, self._key = certificate, key
        self._watched = WatchedFiles(certificate, key)
        self._watched.changed()
        self._lock = threading.Lock()
        self._first = _read(certificate, key)

    def credentials(self) -> grpc.ServerCredentials:
        """What a server's port is opened with."""
        newer: Any = self._newer  # gRPC's stubs leave out that None is an answer
        return grpc.dynamic_ssl_server_credentials(self._first, newer)

    def _newer(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC, in a thread of its own, before each handshake; None: nothing has changed."""
        with self._lock:
            if not self._watched.changed():
                return None
            try:
                newer = _read(self._certificate, self._key)
            except BadInputError as error:
                log.error("the certificate stays the one before", extra={"detail": str(error)})
                return None
            log.info("certificate read", extra={"file": str(self._certificate)})
            return newer


def _read(certificate: Path, key: Path) -> grpc.ServerCertificateConfiguration:
    chain_pem, key_pem = _bytes(certificate, "certificate"), _bytes(key, "key")
    try:
        first = x509.load_pem_x509_certificates(chain_pem)[0]
    except ValueError as error:
        raise BadInputError(
            f"--tls-certificate {certificate} holds no certificate in PEM; give the coordinator's certificate, "
            "followed by those of authorities between it and the root."
        ) from error
    try:
        private_key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BadInputError(
            f"--tls-key {key} holds no private key in PEM without a password; give the certificate's key."
        ) from error
    if _encoded(private_key.public_key()) != _encoded(first.public_key()):
        raise BadInputError(
            f"--tls-key {key} is not the key of the first certificate in {certificate}; give the two that belong "
            "together."
        )
    ends = first.not_valid_after_utc
    if ends <= datetime.datetime.now(datetime.UTC):
        raise BadInputError(f"The certificate in {certificate} was valid until {ends:%Y-%m-%d %H:%M} UTC; renew it.")
    return grpc.ssl_server_certificate_configuration([(key_pem, chain_pem)])


def _bytes(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInputError(f"--tls-{option} {path} cannot be read ({error.strerror}); give a PEM file.") from error


def _encoded(public_key: PublicKeyTypes) -> bytes:
    return public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
