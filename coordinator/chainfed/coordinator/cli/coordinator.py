"""`chainfed coordinator`."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from chainfed.coordinator.app import DEFAULT_ADDRESS, Coordinator, is_loopback, split_address
from chainfed.coordinator.logs import set_up
from chainfed.core.console import json_option, out, print_json
from chainfed.core.errors import BadInputError


@click.command(epilog="Example: chainfed coordinator --state ./coordinator --listen 127.0.0.1:7700")
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for everything it keeps."
)
@click.option(
    "--listen", default=DEFAULT_ADDRESS, show_default=True, metavar="HOST:PORT", help="Port 0 takes a free one."
)
@click.option("--insecure-listen", is_flag=True, help="Allow an address that other machines reach, without encryption.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@json_option
def command(state: Path, listen: str, insecure_listen: bool, log_format: str, as_json: bool) -> None:
    """Serve federated runs until SIGTERM or SIGINT.

    Prints the address once it listens. What it keeps in --state survives a kill at any moment.
    """
    host, _ = split_address(listen)
    if not is_loopback(host) and not insecure_listen:
        raise BadInputError(
            f"{listen} can be reached from other machines, and this version speaks without encryption; "
            "listen on 127.0.0.1, "
            "or give --insecure-listen if the network is yours."
        )
    set_up(log_format)
    asyncio.run(_serve(state, listen, as_json))


async def _serve(state: Path, listen: str, as_json: bool) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Coordinator(state, listen) as coordinator:
        if as_json:
            print_json({"listening": coordinator.address})
        else:
            out.print(f"Listening on {coordinator.address}", markup=False)
            out.file.flush()
        await stop.wait()
