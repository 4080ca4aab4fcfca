"""`chainfed emulate`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from chainfed.core.console import json_option, megabytes, out, print_json, table
from chainfed.core.errors import BadInputError
from chainfed.harness.emulate import EmulationResult, EmulationSettings, emulate, parse_memory_budgets
from chainfed.harness.fleet import LOOPBACK, OWN_DEVICE
from chainfed.harness.narration import Narrator
from chainfed.harness.partition import PartitionSpec
from chainfed.v1 import run_service_pb2 as pb

_FILE = click.Path(path_type=Path)


@click.command(
    epilog="Example: chainfed emulate BUNDLE --train train.jsonl.gz --test test.jsonl.gz --devices 20 "
    "--partition dirichlet:1.0"
)
@click.argument("bundle", type=_FILE)
@click.option(
    "--train", "train_file", type=_FILE, required=True, help="Training examples, JSON lines with `text` and `label`."
)
@click.option("--test", "test_file", type=_FILE, required=True, help="Held-out examples.")
@click.option("--devices", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Emulated devices.")
@click.option("--per-round", type=click.IntRange(1), default=None, help="Devices in a round.  [default: half of them]")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True, help="Training rounds.")
@click.option(
    "--partition", default="dirichlet:1.0", show_default=True, help="How examples are dealt: iid or dirichlet:A."
)
@click.option(
    "--memory-mb", default="0", show_default=True, help="Memory budgets of the devices, in turn, in MB; 0: no limit."
)
@click.option(
    "--window",
    default="auto",
    show_default=True,
    help="Layers trained together (Q), or auto: what the smallest device holds.",
)
@click.option("--foat-threshold", type=click.FloatRange(0, 1), help="FOAT threshold (T).  [default: the bundle's]")
@click.option(
    "--global-loss-weight",
    type=click.FloatRange(0),
    help="Weight of the global loss (lambda).  [default: the bundle's]",
)
@click.option("--warmup-rounds", type=click.IntRange(0), help="Rounds that train only heads.  [default: the bundle's]")
@click.option(
    "--local-epochs", type=click.IntRange(1), help="Passes over a device's examples.  [default: the bundle's]"
)
@click.option(
    "--adapter-lr", type=click.FloatRange(0, min_open=True), help="Learning rate of adapters.  [default: the bundle's]"
)
@click.option(
    "--head-lr", type=click.FloatRange(0, min_open=True), help="Learning rate of heads.  [default: the bundle's]"
)
@click.option(
    "--evaluate-every", type=click.IntRange(0), default=0, help="Evaluate every so many rounds; 0: first and last."
)
@click.option(
    "--evaluate-examples", type=click.IntRange(0), default=0, help="Examples a device evaluates in between; 0: all."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of every draw.")
@click.option(
    "--workers", type=click.IntRange(1), default=None, help="Devices that compute at once.  [default: processor cores]"
)
@click.option(
    "--device",
    "commands",
    multiple=True,
    metavar="COMMAND",
    help="How devices are started: `chainfed`, or a command that takes the options of `chainfed device`. Given again, "
    "the devices take the commands in turn.  [default: chainfed]",
)
@click.option(
    "--guests", type=click.IntRange(0), default=0, help="Devices from elsewhere, a phone perhaps, to wait for."
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default=LOOPBACK,
    help="Where guests find the coordinator; without encryption, for a network of your own.  [default: a free port of "
    "this machine alone]",
)
@click.option("--out", "folder", type=_FILE, default=None, help="Run folder, not there yet.  [default: runs/TIME]")
@json_option
def command(
    bundle: Path,
    train_file: Path,
    test_file: Path,
    devices: int,
    per_round: int | None,
    rounds: int,
    partition: str,
    memory_mb: str,
    window: str,
    foat_threshold: float | None,
    global_loss_weight: float | None,
    warmup_rounds: int | None,
    local_epochs: int | None,
    adapter_lr: float | None,
    head_lr: float | None,
    evaluate_every: int,
    evaluate_examples: int,
    seed: int,
    workers: int | None,
    commands: tuple[str, ...],
    guests: int,
    listen: str,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Run a coordinator and a fleet of emulated devices on this machine.

    Each device is a process of its own that runs the bundle's programs on ExecuTorch and speaks the real protocol.
    The run folder
    receives the tuned adapters, every event, and a plot.
    """
    config = pb.RunConfig(
        window_size=parse_window(window),
        rounds=rounds,
        devices_per_round=min(devices + guests, per_round or max(1, (devices + guests) // 2)),
        min_devices=devices + guests,
        seed=seed,
        foat_threshold=foat_threshold,
        global_loss_weight=global_loss_weight,
        warmup_rounds=warmup_rounds,
        local_epochs=local_epochs,
        adapter_lr=adapter_lr,
        head_lr=head_lr,
        evaluate_every=evaluate_every,
        evaluate_examples=evaluate_examples,
    )
    settings = EmulationSettings(
        bundle=bundle,
        train_file=train_file,
        test_file=test_file,
        folder=new_run_folder(folder),
        devices=devices,
        workers=workers or os.cpu_count() or 1,
        partition=PartitionSpec.parse(partition),
        memory_budgets=parse_memory_budgets(memory_mb),
        seed=seed,
        config=config,
        commands=commands or (OWN_DEVICE,),
        listen=listen,
    )
    with Narrator(rounds) as narrator:
        result = emulate(settings, narrator.tell)
    if as_json:
        print_json(result.as_json())
    else:
        show_result(result)


def parse_window(text: str) -> int:
    """Layers in a window; 0 for `auto`. Raises BadInputError for anything that is neither."""
    if text == "auto":
        return 0
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise BadInputError(f"--window {text!r} is neither a number of layers nor `auto`.")


def new_run_folder(folder: Path | None) -> Path:
    """Makes the run folder. Raises BadInputError when it exists already, so that no earlier run is lost."""
    path = folder or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    try:
        path.mkdir(parents=True)
    except FileExistsError as error:
        raise BadInputError(f"The run folder {path} exists already; choose another with --out.") from error
    return path.resolve()


def show_result(result: EmulationResult) -> None:
    """Prints a result as a table."""
    rows = table("Result", "what", "value")
    rows.add_row("held-out accuracy before", f"{100 * result.accuracy.before:.2f}%")
    rows.add_row("held-out accuracy after", f"{100 * result.accuracy.after:.2f}%")
    rows.add_row("held-out loss before / after", f"{result.loss.before:.3f} / {result.loss.after:.3f}")
    rows.add_row("training rounds", str(result.rounds))
    rows.add_row("first trained layer, from 0 (FOAT)", str(result.foat_start))
    rows.add_row("window size", str(result.window_size))
    rows.add_row("bytes up / down", f"{megabytes(result.bytes_up)} / {megabytes(result.bytes_down)}")
    rows.add_row("device memory, peak / planned", f"{result.device_peak_anon_mb:.1f} MB / {result.planned_mb:.1f} MB")
    rows.add_row("seconds", f"{result.seconds:.1f}")
    rows.add_row("tuned adapters", str(result.adapters))
    out.print(rows)
