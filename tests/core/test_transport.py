"""When a client speaks TLS, and whom it trusts."""

from __future__ import annotations

from pathlib import Path

import pytest

from chainfed.core.errors import BadInputError
from chainfed.core.transport import PLAINTEXT, choose_transport
from tests.certificates import Authority


@pytest.mark.parametrize("address", ["127.0.0.1:7700", "127.9.9.9:1", "[::1]:7700", "localhost:7700"])
def test_this_machine_is_spoken_to_in_plain_text(address: str) -> None:
    assert choose_transport(address) == PLAINTEXT
    assert choose_transport(address, tls=True).encrypted


@pytest.mark.parametrize("address", ["10.0.0.1:7700", "[2001:db8::1]:7700", "coordinator.example:443", "0.0.0.0:1"])
def test_another_machine_never_is_unless_told_so(address: str) -> None:
    transport = choose_transport(address)
    assert (transport.encrypted, transport.root_certificates) == (True, None)
    assert choose_transport(address, insecure=True) == PLAINTEXT


def test_an_authority_implies_tls(tmp_path: Path) -> None:
    authority = Authority()
    transport = choose_transport("127.0.0.1:7700", ca=authority.write(tmp_path / "ca.pem"))
    assert (transport.encrypted, transport.root_certificates) == (True, authority.pem)


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("no certificate")
    for arguments, words in (
        ({"ca": file}, "holds no certificate in PEM"),
        ({"ca": tmp_path / "none.pem"}, "cannot be read"),
        ({"tls": True, "insecure": True}, "only one of them"),
        ({"ca": file, "insecure": True}, "only one of them"),
    ):
        with pytest.raises(BadInputError, match=words):
            choose_transport("127.0.0.1:7700", **arguments)  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="HOST:PORT"):
        choose_transport("nowhere")
