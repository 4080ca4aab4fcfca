"""Certificate authorities of tests, and what they sign."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.UTC)
PEM = serialization.Encoding.PEM


class Authority:
    """An authority with a key of its own."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(self._name, self._name, self._key.public_key(), 1)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.pem = builder.sign(self._key, hashes.SHA256()).public_bytes(PEM)

    def write(self, path: Path) -> Path:
        """Writes the authority's certificate."""
        path.write_bytes(self.pem)
        return path

    def issue(self, folder: Path, *names: str, days: float = 1, stem: str = "server") -> tuple[Path, Path]:
        """Writes a certificate for host names and addresses, and its key; below zero `days` it has ended. A file that
        is there is replaced at once."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, stem)])
        builder = _builder(subject, self._name, key.public_key(), days)
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        protection = serialization.NoEncryption()
        contents = {
            folder / f"{stem}.pem": builder.sign(self._key, hashes.SHA256()).public_bytes(PEM),
            folder / f"{stem}.key": key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, protection),
        }
        for path, content in contents.items():
            part = path.with_name(path.name + ".part")
            part.write_bytes(content)
            part.replace(path)
        certificate, private = contents
        return certificate, private


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: float
) -> x509.CertificateBuilder:
    ends = NOW + datetime.timedelta(days=days)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(min(NOW, ends) - datetime.timedelta(days=1)).not_valid_after(ends)


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
