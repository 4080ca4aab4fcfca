"""Writes `tests/vectors/signatures.json`: what a device signs, with a fixed key, and signatures that hold and do not.

`make vectors` runs it. It imports nothing of ChainFed. Signatures are made by the cryptography package with the
deterministic nonces of RFC 6979, so that the file comes out the same; a device may draw its nonces.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

FILE = Path(__file__).parent / "signatures.json"
ALGORITHM = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
WORK = hashlib.sha256(b"an assignment").hexdigest()[:32]
OTHER_WORK = hashlib.sha256(b"another assignment").hexdigest()[:32]


def main() -> None:
    FILE.write_text(text(), encoding="utf-8")


def text() -> str:
    """The file's content."""
    key, stranger = private_key("the device"), private_key("a stranger")
    head = {
        "about": "Texts and signatures of protos/chainfed/v1/device_service.proto: ECDSA over P-256 with SHA-256, in "
        "DER. Keys, signatures and statistics are hexadecimal; numbers with a decimal point are float64.",
        "private_key": encoded(key),
        "public_key": encoded(key.public_key()),
        "another_public_key": encoded(stranger.public_key()),
    }
    cases = [case(key, stranger, kind, fields) for kind, fields in FIELDS]
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    listed = ",\n".join("  " + json.dumps(each) for each in cases)
    return "{\n" + ",\n".join([*lines, f' "cases": [\n{listed}\n ]']) + "\n}\n"


def private_key(name: str) -> ec.EllipticCurvePrivateKey:
    number = int.from_bytes(hashlib.sha256(name.encode()).digest(), "big") % (ORDER - 1) + 1
    return ec.derive_private_key(number, ec.SECP256R1())


def encoded(key: ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey) -> str:
    """PKCS #8 of a private key, SubjectPublicKeyInfo of a public one; DER."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo).hex()
    form, protection = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.DER, form, protection).hex()


FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("update", {"assignment_id": WORK, "sha256": hashlib.sha256(b"an update").hexdigest(), "num_examples": 128}),
    ("update", {"assignment_id": OTHER_WORK, "sha256": hashlib.sha256(b"").hexdigest(), "num_examples": 1 << 40}),
    (
        "profile",
        {
            "assignment_id": WORK,
            "statistics": b"a tensor file".hex(),
            "num_examples": 2,
            "scores": [1.0, 0.9123456789012345, 1 / 3, 5e-324, 0.0],
        },
    ),
    ("profile", {"assignment_id": OTHER_WORK, "statistics": "", "num_examples": 64, "scores": []}),
    ("evaluation", {"assignment_id": WORK, "num_examples": 1000, "num_correct": 871, "loss_sum": 341.7280029296875}),
    ("evaluation", {"assignment_id": OTHER_WORK, "num_examples": 0, "num_correct": 0, "loss_sum": 0.0}),
    ("evaluation", {"assignment_id": WORK, "num_examples": 3, "num_correct": 0, "loss_sum": 1.7976931348623157e308}),
]


def signed_text(kind: str, fields: dict[str, Any]) -> str:
    lines = ["chainfed-" + kind, fields["assignment_id"]]
    if kind == "update":
        lines += [fields["sha256"], str(fields["num_examples"])]
    elif kind == "profile":
        lines += [hashlib.sha256(bytes.fromhex(fields["statistics"])).hexdigest(), str(fields["num_examples"])]
        lines += [bits(score) for score in fields["scores"]]
    else:
        lines += [str(fields["num_examples"]), str(fields["num_correct"]), bits(fields["loss_sum"])]
    return "\n".join(lines)


def bits(value: float) -> str:
    return f"{struct.unpack('<Q', struct.pack('<d', value))[0]:016x}"


def case(
    key: ec.EllipticCurvePrivateKey, stranger: ec.EllipticCurvePrivateKey, kind: str, fields: dict[str, Any]
) -> dict[str, Any]:
    text = signed_text(kind, fields)
    good = key.sign(text.encode(), ALGORITHM)
    r, s = decode_dss_signature(good)
    replayed = signed_text(kind, fields | {"assignment_id": "f" * 32})
    invalid = {
        "missing": b"",
        "by another key": stranger.sign(text.encode(), ALGORITHM),
        "of another assignment": key.sign(replayed.encode(), ALGORITHM),
        "of the text and a line feed": key.sign((text + "\n").encode(), ALGORITHM),
        "s changed": encode_dss_signature(r, s % (ORDER - 1) + 1),
        "two numbers instead of DER": r.to_bytes(32, "big") + s.to_bytes(32, "big"),
        "cut": good[:-1],
    }
    return {
        "kind": kind,
        **fields,
        "text": text,
        "valid": good.hex(),
        "invalid": [{"why": why, "signature": signature.hex()} for why, signature in invalid.items()],
    }


if __name__ == "__main__":
    main()
