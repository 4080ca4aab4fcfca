"""Addresses as servers and clients call them."""

from __future__ import annotations

import pytest

from chainfed.core.address import is_loopback, near_address, split_address
from chainfed.core.errors import BadInputError


@pytest.mark.parametrize(
    ("address", "near"),
    [
        ("0.0.0.0:7700", "127.0.0.1:7700"),
        ("[::]:7700", "[::1]:7700"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("192.168.1.5:7700", "192.168.1.5:7700"),
        ("coordinator.example:443", "coordinator.example:443"),
    ],
)
def test_a_server_that_listens_everywhere_is_near(address: str, near: str) -> None:
    assert near_address(address) == near


@pytest.mark.parametrize("address", ["", "7700", "host:", "host:x", ":7700", "host:65536", "host:-1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadInputError, match=r"not HOST:PORT"):
        split_address(address)


def test_loopback() -> None:
    assert [is_loopback(host) for host in ("localhost", "127.9.9.9", "::1", "0.0.0.0", "10.0.2.2", "host")] == [
        *(True, True, True),
        *(False, False, False),
    ]
