"""`chainfed coordinator`."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from chainfed.coordinator.app import Coordinator
from chainfed.coordinator.certificate import ServerCertificate
from chainfed.coordinator.enrolment_tokens import EnrolmentTokens
from chainfed.coordinator.logs import set_up
from chainfed.core.address import DEFAULT_ADDRESS, is_loopback, split_address
from chainfed.core.console import json_option, out, print_json
from chainfed.core.errors import BadInputError

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(epilog="Example: chainfed coordinator --state ./coordinator --listen 127.0.0.1:7700")
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for everything it keeps."
)
@click.option(
    "--listen", default=DEFAULT_ADDRESS, show_default=True, metavar="HOST:PORT", help="Port 0 takes a free one."
)
@click.option("--tls-certificate", type=_FILE, help="PEM file with its certificate and those of authorities between.")
@click.option("--tls-key", type=_FILE, help="PEM file with the certificate's private key, without a password.")
@click.option(
    "--enrolment-tokens", type=_FILE, help="Text file, one token a line: new devices must have one.  [default: none]"
)
@click.option("--insecure-listen", is_flag=True, help="Allow an address that other machines reach, without encryption.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@json_option
def command(
    state: Path,
    listen: str,
    tls_certificate: Path | None,
    tls_key: Path | None,
    enrolment_tokens: Path | None,
    insecure_listen: bool,
    log_format: str,
    as_json: bool,
) -> None:
    """Serve federated runs until SIGTERM or SIGINT.

    Prints the address once it listens. What it keeps in --state survives a kill at any moment. Certificate, key and
    tokens are read again when their files change.
    """
    host, _ = split_address(listen)
    if (tls_certificate is None) != (tls_key is None):
        raise BadInputError("--tls-certificate and --tls-key belong together; give both, or neither for plain text.")
    if not is_loopback(host) and tls_certificate is None and not insecure_listen:
        raise BadInputError(
            f"{listen} can be reached from other machines, and without a certificate nothing is encrypted; give "
            "--tls-certificate and --tls-key, listen on 127.0.0.1, or give --insecure-listen if the network is yours."
        )
    certificate = ServerCertificate(tls_certificate, tls_key) if tls_certificate and tls_key else None
    tokens = EnrolmentTokens(enrolment_tokens) if enrolment_tokens else None
    set_up(log_format)
    asyncio.run(_serve(Coordinator(state, listen, certificate=certificate, tokens=tokens), as_json))


async def _serve(serving: Coordinator, as_json: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving as coordinator:
        if as_json:
            print_json({"listening": coordinator.address})
        else:
            out.print(f"Listening on {coordinator.address}", markup=False)
            out.file.flush()
        await stop.wait()
