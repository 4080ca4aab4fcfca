"""Where a coordinator listens: HOST:PORT, and who can reach it."""

from __future__ import annotations

import ipaddress

from chainfed.core.errors import BadInputError

DEFAULT_ADDRESS = "127.0.0.1:7700"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT` or `[IPV6]:PORT`. Raises BadInputError when it is neither."""
    host, separator, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise BadInputError(
            f"The address {address!r} is not HOST:PORT with a port of 0 to 65535; give one like {DEFAULT_ADDRESS}."
        )
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def near_address(address: str) -> str:
    """An address that a server listens at as its own machine calls it: loopback where it listens everywhere."""
    host, port = split_address(address)
    try:
        everywhere = ipaddress.ip_address(host)
    except ValueError:
        return address
    if not everywhere.is_unspecified:
        return address
    return f"127.0.0.1:{port}" if everywhere.version == 4 else f"[::1]:{port}"
