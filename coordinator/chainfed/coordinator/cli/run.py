"""`chainfed run ...`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from chainfed.coordinator.cli import showing
from chainfed.coordinator.client import OperatorClient, require_success
from chainfed.coordinator.plain import plain
from chainfed.core.address import DEFAULT_ADDRESS
from chainfed.core.console import json_option, out, print_json
from chainfed.core.errors import BadInputError
from chainfed.core.manifest import Bundle
from chainfed.core.tensors import sha256_hex
from chainfed.core.transport import Transport, transport_options
from chainfed.v1 import run_service_pb2 as pb

Function = TypeVar("Function", bound=Callable[..., Any])

_STATISTICS = {"window_end": "GLOBAL_BRANCH_STATISTICS_WINDOW_END", "last_layer": "GLOBAL_BRANCH_STATISTICS_LAST_LAYER"}


def coordinator_option(function: Function) -> Function:
    """The options `--coordinator`, `--tls`, `--ca` and `--insecure`; the command receives `coordinator` and
    `transport`."""
    return click.option(
        "--coordinator",
        default=DEFAULT_ADDRESS,
        show_default=True,
        envvar="CHAINFED_COORDINATOR",
        show_envvar=True,
        metavar="HOST:PORT",
        help="Where the coordinator listens.",
    )(transport_options(function))


@click.group()
def command() -> None:
    """Create, steer and watch runs.

    Example: chainfed run create BUNDLE --rounds 20 --per-round 10 --start
    """


@command.command(epilog="Example: chainfed run create ./bundle --rounds 20 --per-round 10 --min-devices 20 --start")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--name", default="", help="For people; up to 128 characters.")
@click.option("--start", is_flag=True, help="Start the run at once.")
@click.option("--window", default="auto", show_default=True, metavar="auto|Q", help="Layers trained together.")
@click.option("--rounds", type=int, default=20, show_default=True, help="Training rounds.")
@click.option("--per-round", type=int, default=10, show_default=True, help="Devices selected for a round.")
@click.option("--min-devices", type=int, help="Devices that must be there before it begins.  [default: --per-round]")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Seed of every draw.")
@click.option("--foat-threshold", type=float, help="T of the paper, 0 to 1.  [default: the bundle's]")
@click.option("--foat-examples", type=int, help="Examples that a device profiles.  [default: the bundle's]")
@click.option("--global-loss-weight", type=float, help="Lambda of the paper.  [default: the bundle's]")
@click.option("--global-branch-statistics", type=click.Choice(list(_STATISTICS)), help="[default: the bundle's]")
@click.option("--warmup-rounds", type=int, help="Rounds that train heads alone.  [default: the bundle's]")
@click.option("--local-epochs", type=int, help="Passes over a device's examples.  [default: the bundle's]")
@click.option("--adapter-lr", type=float, help="Learning rate of adapters.  [default: the bundle's]")
@click.option("--head-lr", type=float, help="Learning rate of local heads.  [default: the bundle's]")
@click.option("--final-head-lr", type=float, help="Of the final head before its own stage.  [default: the bundle's]")
@click.option("--evaluate-every", type=int, default=0, show_default=True, help="Rounds; 0: only first and last.")
@click.option("--evaluate-examples", type=int, default=0, show_default=True, help="For those between; 0: all.")
@click.option("--round-deadline", type=int, default=86_400, show_default=True, metavar="SECONDS")
@click.option("--min-updates", type=int, default=1, show_default=True, help="Fewer, and a round is repeated.")
@click.option("--over-selection", type=float, default=1.0, show_default=True, help="Devices selected / --per-round.")
@click.option("--max-update-norm", type=float, default=0.0, show_default=True, help="Larger is refused; 0: no bound.")
@coordinator_option
@json_option
def create(
    bundle: Path, name: str, start: bool, coordinator: str, transport: Transport, as_json: bool, **settings: Any
) -> None:
    """Upload what is missing of BUNDLE and create a run over it."""
    config = _config(settings)
    with OperatorClient(coordinator, transport) as client:
        run = client.create(Bundle(bundle), config, name)
        _show(client.start(run.run_id) if start else run, as_json)


_FIELDS = {"per_round": "devices_per_round", "round_deadline": "round_deadline_seconds"}


def _config(settings: dict[str, Any]) -> pb.RunConfig:
    """The configuration that the options give. Raises BadInputError, naming the option, when a value cannot
    be sent."""
    window = settings.pop("window")
    if window != "auto" and not (window.isascii() and window.isdigit() and int(window) > 0):
        raise BadInputError(f"--window is {window!r}, but must be auto or a number of layers; see `chainfed inspect`.")
    settings["window_size"] = 0 if window == "auto" else int(window)
    if settings["min_devices"] is None:
        settings["min_devices"] = settings["per_round"]
    statistics = settings.pop("global_branch_statistics")
    if statistics is not None:
        settings["global_branch_statistics"] = _STATISTICS[statistics]
    config = pb.RunConfig()
    for option, value in settings.items():
        if value is None:
            continue
        try:
            field = _FIELDS.get(option, option)
            config.MergeFrom(pb.RunConfig(**{field: value}))
        except ValueError as error:
            dashed = option.replace("_", "-")
            raise BadInputError(
                f"--{dashed} is {value}, which is out of range; see `chainfed run create --help`."
            ) from error
    return config


def _show(run: pb.Run, as_json: bool) -> None:
    if as_json:
        print_json(plain(run))
    else:
        showing.run(run)


def _verb(name: str, summary: str, act: Callable[[OperatorClient, str], pb.Run]) -> None:
    """Adds a sub-command that does one thing to one run and shows it."""

    @command.command(name, help=summary, epilog=f"Example: chainfed run {name} 0123456789ab")
    @click.argument("run_id", metavar="RUN")
    @coordinator_option
    @json_option
    def verb(run_id: str, coordinator: str, transport: Transport, as_json: bool) -> None:
        with OperatorClient(coordinator, transport) as client:
            _show(act(client, run_id), as_json)


_verb("start", "Let a created run begin.", OperatorClient.start)
_verb("pause", "Hold a run: no more work is handed out.", OperatorClient.pause)
_verb("resume", "Let a paused run go on where it was.", OperatorClient.resume)
_verb("cancel", "End a run for good; its checkpoints stay.", OperatorClient.cancel)
_verb("show", "Show everything about a run.", OperatorClient.get)


@command.command("list", epilog="Example: chainfed run list --json")
@coordinator_option
@json_option
def list_runs(coordinator: str, transport: Transport, as_json: bool) -> None:
    """List all runs, newest first."""
    with OperatorClient(coordinator, transport) as client:
        runs = client.list()
    if as_json:
        print_json({"runs": [plain(run) for run in runs]})
    else:
        showing.runs(runs)


@command.command(epilog="Example: chainfed run watch 0123456789ab --json | tee events.jsonl")
@click.argument("run_id", metavar="RUN")
@click.option(
    "--from", "from_sequence", type=click.IntRange(0), default=0, show_default=True, help="First event wanted."
)
@coordinator_option
@json_option
def watch(run_id: str, from_sequence: int, coordinator: str, transport: Transport, as_json: bool) -> None:
    """Follow a run until it ends, one line for each event (a JSON object with --json).

    Exits with 10 when the run fails.
    """
    with OperatorClient(coordinator, transport) as client:
        for event in client.watch(run_id, from_sequence, patience_seconds=30):
            if as_json:
                print_json(plain(event))
            else:
                out.print(showing.event_line(event), markup=False)
        require_success(client.get(run_id))


@command.command(epilog="Example: chainfed run checkpoint 0123456789ab --out tuned.safetensors")
@click.argument("run_id", metavar="RUN")
@click.option("--out", "target", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option("--round", "rounds_done", type=click.IntRange(0), help="Training rounds done.  [default: the newest]")
@coordinator_option
@json_option
def checkpoint(
    run_id: str, target: Path, rounds_done: int | None, coordinator: str, transport: Transport, as_json: bool
) -> None:
    """Fetch a checkpoint: adapters, heads and statistics as safetensors, for `chainfed evaluate` and
    `chainfed merge`."""
    with OperatorClient(coordinator, transport) as client:
        data = client.checkpoint(run_id, rounds_done)
    try:
        partial = target.with_name(target.name + ".partial")
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as error:
        raise BadInputError(f"{target} cannot be written ({error.strerror}); give another --out.") from error
    if as_json:
        print_json({"file": str(target), "bytes": len(data), "sha256": sha256_hex(data)})
    else:
        out.print(f"{target}: {len(data)} bytes, SHA-256 {sha256_hex(data)}", markup=False)
