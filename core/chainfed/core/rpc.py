"""What both ends of a gRPC connection agree on beside the protocol: sizes, flow control, and how a typed
error crosses the wire.

This module imports no gRPC: it reads a failed call through the three methods that every gRPC error has, so
that the synchronous and the asynchronous client share it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from chainfed.core.errors import METADATA_KEY, ChainFedError, UnreachableError, error_from_code

CHUNK_BYTES = 262_144
"""Largest piece of a stream, bytes."""

MAX_MESSAGE_BYTES = 17 * 1024 * 1024
"""Largest message, bytes: a profile's statistics (16 MiB) and what stands around them."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", CHUNK_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
"""Options of a client's channel. gRPC's own flow-control windows would hold megabytes for each stream;
these hold one chunk."""

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *CHANNEL_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
)
"""Options of a server. Without `so_reuseport` a second server on the same port fails instead of taking half
of the calls."""


_CERTIFICATE_WORDS = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")
"""What gRPC says when a server's certificate does not count: its authority, its time, its name."""


@runtime_checkable
class RpcFailure(Protocol):
    """What `grpc.RpcError` and `grpc.aio.AioRpcError` have in common."""

    def code(self) -> Any:
        """The status; its `name` is the status's name."""

    def details(self) -> str | None:
        """The sentence."""

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """Key and value pairs."""


def error_of(failure: Exception, address: str) -> ChainFedError:
    """The error that the peer at `address` raised, or UnreachableError when none answered in time.

    Raises `failure` itself when it is no gRPC error.
    """
    if not isinstance(failure, RpcFailure):
        raise failure
    details = failure.details() or ""
    for key, value in failure.trailing_metadata() or ():
        if key == METADATA_KEY:
            return error_from_code(value if isinstance(value, str) else value.decode("ascii", "replace"), details)
    status = str(getattr(failure.code(), "name", failure.code()))
    if status == "UNAVAILABLE":
        if any(word in details for word in _CERTIFICATE_WORDS):
            return UnreachableError(
                f"What answers at {address} has no valid certificate for that name from an authority that is trusted "
                "here; give --ca with the authority's certificate and --coordinator with a name that stands in the "
                "coordinator's."
            )
        if "handshake failed" in details:
            return UnreachableError(
                f"What answers at {address} does not speak TLS; see the address and whether the coordinator has "
                "--tls-certificate."
            )
        if "Socket closed" in details:
            return UnreachableError(
                f"What answers at {address} closed the connection; try again, with --tls or --ca if it speaks TLS."
            )
        return UnreachableError(
            f"No coordinator answers at {address}; start one with `chainfed coordinator` or give another address."
        )
    if status == "DEADLINE_EXCEEDED":
        return UnreachableError(
            f"The coordinator at {address} did not answer in time; see whether it is overloaded and try again."
        )
    return ChainFedError(f"The coordinator at {address} failed with {status}: {details or 'no details'}.")
