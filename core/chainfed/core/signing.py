"""A device's signature on what it hands in: ECDSA over P-256 with SHA-256, in DER, of a text that names the work.

The texts are those of `protos/chainfed/v1/device_service.proto`; `tests/vectors/signatures.json` holds every language
to them.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chainfed.core.errors import BadInputError

_ALGORITHM = ec.ECDSA(hashes.SHA256())


def update_text(assignment_id: str, sha256: str, num_examples: int) -> str:
    """What is signed of an update. sha256: of the whole update, 64 hexadecimal digits."""
    return _lines("chainfed-update", assignment_id, sha256, str(num_examples))


def profile_text(assignment_id: str, statistics_sha256: str, num_examples: int, scores: Iterable[float]) -> str:
    """What is signed of a profile. scores: float64, one a layer."""
    return _lines("chainfed-profile", assignment_id, statistics_sha256, str(num_examples), *map(_bits, scores))


def evaluation_text(assignment_id: str, num_examples: int, num_correct: int, loss_sum: float) -> str:
    """What is signed of an evaluation. loss_sum: float64, nats."""
    return _lines("chainfed-evaluation", assignment_id, str(num_examples), str(num_correct), _bits(loss_sum))


def _lines(*lines: str) -> str:
    return "\n".join(lines)


def _bits(value: float) -> str:
    """The bits of a float64, most significant byte first: 16 hexadecimal digits, with no rounding to agree on."""
    return struct.pack(">d", value).hex()


class SigningKey:
    """A private key on P-256. `public_key`: its SubjectPublicKeyInfo in DER, 91 bytes."""

    def __init__(self, private_key: ec.EllipticCurvePrivateKey) -> None:
        self._private_key = private_key
        self.public_key = _encoded(private_key.public_key())

    @classmethod
    def kept(cls, path: Path) -> SigningKey:
        """The key in a PEM file (PKCS #8), made when there is none and on the disk before it is returned.

        Raises BadInputError when the file holds anything else. A file that cannot be read or written raises OSError.
        """
        if not path.exists():
            _write_new(path)
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise BadInputError(
                f"{path} holds no private key on P-256 without a password; put the device's own key back, or remove "
                "its state folder: the coordinator then takes it for a new device."
            )
        return cls(key)

    def sign(self, text: str) -> bytes:
        """The signature of a text, DER."""
        return self._private_key.sign(text.encode(), _ALGORITHM)


class PublicKey:
    """What a device's signatures are held against."""

    def __init__(self, encoded: bytes) -> None:
        """encoded: SubjectPublicKeyInfo in DER, the point uncompressed. Raises BadInputError for anything else."""
        try:
            key = serialization.load_der_public_key(encoded)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if (
            not isinstance(key, ec.EllipticCurvePublicKey)
            or not isinstance(key.curve, ec.SECP256R1)
            or _encoded(key) != encoded
        ):
            raise BadInputError(
                f"public_key ({len(encoded)} bytes) is no ECDSA key on P-256 as SubjectPublicKeyInfo in DER with an "
                "uncompressed point; send that, or nothing from a device that does not sign."
            )
        self._key = key

    def verifies(self, signature: bytes, text: str) -> bool:
        """Whether a signature (DER) is this key's, of this text."""
        try:
            self._key.verify(signature, text.encode(), _ALGORITHM)
        except InvalidSignature:
            return False
        return True


def _encoded(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _write_new(path: Path) -> None:
    """Makes a key; a crash leaves either none or a whole one, because the coordinator will hold the device to it."""
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
