"""What a device signs, held against `tests/vectors/signatures.json`, which the Kotlin device reads too."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from chainfed.core.errors import BadInputError
from chainfed.core.signing import PublicKey, SigningKey, evaluation_text, profile_text, update_text
from chainfed.core.tensors import sha256_hex

FOLDER = Path(__file__).parents[1] / "vectors"
VECTORS: dict[str, Any] = json.loads((FOLDER / "signatures.json").read_text(encoding="utf-8"))
CASES: list[dict[str, Any]] = VECTORS["cases"]
DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
PKCS8, SPKI = serialization.PrivateFormat.PKCS8, serialization.PublicFormat.SubjectPublicKeyInfo
OPEN = serialization.NoEncryption()


def text_of(case: dict[str, Any]) -> str:
    if case["kind"] == "update":
        return update_text(case["assignment_id"], case["sha256"], case["num_examples"])
    if case["kind"] == "profile":
        statistics = sha256_hex(bytes.fromhex(case["statistics"]))
        return profile_text(case["assignment_id"], statistics, case["num_examples"], case["scores"])
    return evaluation_text(case["assignment_id"], case["num_examples"], case["num_correct"], case["loss_sum"])


@pytest.mark.parametrize("case", CASES)
def test_texts_and_signatures(case: dict[str, Any]) -> None:
    assert text_of(case) == case["text"]
    key = PublicKey(bytes.fromhex(VECTORS["public_key"]))
    assert key.verifies(bytes.fromhex(case["valid"]), case["text"])
    assert len(case["invalid"]) == 7
    for invalid in case["invalid"]:
        assert not key.verifies(bytes.fromhex(invalid["signature"]), case["text"]), invalid["why"]
    assert not PublicKey(bytes.fromhex(VECTORS["another_public_key"])).verifies(
        bytes.fromhex(case["valid"]), case["text"]
    )


def test_every_kind_has_cases() -> None:
    assert {case["kind"] for case in CASES} == {"update", "profile", "evaluation"}


def test_the_fixed_key_signs_what_its_public_key_verifies() -> None:
    loaded = serialization.load_der_private_key(bytes.fromhex(VECTORS["private_key"]), password=None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    key = SigningKey(loaded)
    assert key.public_key.hex() == VECTORS["public_key"]
    assert len(key.public_key) == 91
    assert PublicKey(key.public_key).verifies(key.sign("täxt\nb"), "täxt\nb")


def test_the_vectors_are_fresh() -> None:
    specification = importlib.util.spec_from_file_location("signature_vectors", FOLDER / "make_signature_vectors.py")
    assert specification is not None and specification.loader is not None
    maker = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(maker)
    assert maker.text() == (FOLDER / "signatures.json").read_text(encoding="utf-8"), "run `make vectors`"


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "device-key.pem"
    before = os.umask(0)
    try:
        made = SigningKey.kept(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.kept(path).public_key == made.public_key
    assert SigningKey.kept(tmp_path / "another.pem").public_key != made.public_key
    assert sorted(each.name for each in tmp_path.iterdir()) == ["another.pem", "device-key.pem"]


def test_what_a_killed_process_left_of_a_key_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "device-key.pem.part").write_bytes(b"-----BEGIN")
    assert len(SigningKey.kept(tmp_path / "device-key.pem").public_key) == 91


def pem(key: Any, protection: Any = OPEN) -> bytes:
    data: bytes = key.private_bytes(PEM, PKCS8, protection)
    return data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nothing of the kind",
        pem(ec.generate_private_key(ec.SECP384R1())),
        pem(ed25519.Ed25519PrivateKey.generate()),
        pem(ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"password")),
    ],
    ids=["empty", "text", "another curve", "another kind", "with a password"],
)
def test_a_file_that_holds_no_such_key_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "device-key.pem"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match=r"device-key\.pem holds no private key on P-256"):
        SigningKey.kept(path)
    assert path.read_bytes() == content


POINT = ec.generate_private_key(ec.SECP256R1()).public_key()


@pytest.mark.parametrize(
    "encoded",
    [
        b"x" * 91,
        b"x" * 100_000,
        POINT.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint),
        bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200")
        + POINT.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint),
        POINT.public_bytes(DER, SPKI)[:-1],
        POINT.public_bytes(DER, SPKI) + b"x",
        POINT.public_bytes(PEM, SPKI),
        POINT.public_bytes(DER, SPKI)[:-1] + bytes([POINT.public_bytes(DER, SPKI)[-1] ^ 1]),
        ec.generate_private_key(ec.SECP384R1()).public_key().public_bytes(DER, SPKI),
        ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(DER, SPKI),
    ],
    ids=[
        "noise",
        "long",
        "bare point",
        "compressed point",
        "cut",
        "longer",
        "PEM",
        "not on the curve",
        "another curve",
        "another kind",
    ],
)
def test_a_public_key_of_another_kind_is_refused(encoded: bytes) -> None:
    with pytest.raises(BadInputError, match="no ECDSA key on P-256"):
        PublicKey(encoded)
