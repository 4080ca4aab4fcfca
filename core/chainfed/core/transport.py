"""How a client reaches a coordinator: with TLS, or in plain text on this machine and where it is told to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click
from cryptography import x509

from chainfed.core.address import is_loopback, split_address
from chainfed.core.errors import BadInputError

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Transport:
    """Whether a connection is encrypted, and whom it trusts.

    root_certificates: PEM of the authorities whose certificates count; None: those that gRPC comes with.
    """

    encrypted: bool
    root_certificates: bytes | None = None


PLAINTEXT = Transport(encrypted=False)


def choose_transport(address: str, tls: bool = False, ca: Path | None = None, insecure: bool = False) -> Transport:
    """TLS where `tls` or `ca` ask for it or the address is not this machine's own, unless `insecure`.

    ca: file with the certificates of authorities, PEM. Raises BadInputError for an address, a file or a combination
    that cannot be used.
    """
    host, _ = split_address(address)
    if insecure and (tls or ca is not None):
        raise BadInputError("--insecure speaks without encryption, and --tls or --ca with it; give only one of them.")
    if insecure or not (tls or ca is not None or not is_loopback(host)):
        return PLAINTEXT
    return Transport(encrypted=True, root_certificates=None if ca is None else _authorities(ca))


def _authorities(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        x509.load_pem_x509_certificates(data)
    except OSError as error:
        raise BadInputError(
            f"--ca {path} cannot be read ({error.strerror}); give a PEM file with the authority's certificate."
        ) from error
    except ValueError as error:
        raise BadInputError(
            f"--ca {path} holds no certificate in PEM; give the certificate of the authority that signed the "
            "coordinator's, or the coordinator's own if it signed itself."
        ) from error
    return data


def transport_options(function: Function) -> Function:
    """The options `--tls`, `--ca` and `--insecure` of a command that has `--coordinator`; it receives them as
    `transport`."""

    @functools.wraps(function)
    def command(*args: Any, coordinator: str, tls: bool, ca: Path | None, insecure: bool, **others: Any) -> Any:
        transport = choose_transport(coordinator, tls, ca, insecure)
        return function(*args, coordinator=coordinator, transport=transport, **others)

    for option in (
        click.option("--insecure", is_flag=True, help="Speak without encryption to an address of another machine."),
        click.option(
            "--ca",
            type=click.Path(path_type=Path, dir_okay=False),
            envvar="CHAINFED_CA",
            show_envvar=True,
            help="PEM file with the authority to trust, instead of those that gRPC knows; implies --tls.",
        ),
        click.option("--tls", is_flag=True, help="Speak TLS; the default unless the address is loopback."),
    ):
        option(command)
    return cast(Function, command)
