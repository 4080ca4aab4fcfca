"""`chainfed device`: one emulated device, a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from chainfed.core.console import err, json_option, megabytes, out, print_json, table
from chainfed.core.transport import Transport, transport_options

if TYPE_CHECKING:
    from chainfed.harness.device import DeviceEvent, DeviceReport

_EPILOG = (
    "Example: chainfed device --coordinator 127.0.0.1:7700 --state device-1 --data train.jsonl --test-data test.jsonl"
)


@click.command(epilog=_EPILOG)
@click.option("--coordinator", required=True, metavar="HOST:PORT", help="Where the coordinator listens.")
@transport_options
@click.option(
    "--enrolment-token",
    default="",
    envvar="CHAINFED_ENROLMENT_TOKEN",
    show_envvar=True,
    metavar="TEXT",
    help="What the coordinator may ask of a device that it does not know yet.",
)
@click.option(
    "--state",
    "state_folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for the device's key, files and work; made when absent. A killed device goes on from it.",
)
@click.option(
    "--data",
    "train_file",
    required=True,
    type=click.Path(path_type=Path),
    help="Training examples: JSON lines (optionally .gz) with `text` and `label`.",
)
@click.option(
    "--test-data",
    "test_file",
    type=click.Path(path_type=Path),
    help="Held-out examples in the same form; without them the device evaluates nothing.",
)
@click.option("--memory-mb", type=click.FloatRange(min=0), default=0, help="Memory it may use, MB; 0: no limit.")
@click.option("--key", help="The device's key; by default made once and kept in the state folder.")
@click.option("--model-name", default="emulated", show_default=True, help="What the operator sees.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads to compute with.")
@click.option(
    "--patience",
    type=click.FloatRange(min=0),
    default=30,
    show_default=True,
    help="Seconds for which a silent coordinator is tried again.",
)
@click.option("--once", is_flag=True, help="Leave after one assignment.")
@json_option
def command(
    coordinator: str,
    transport: Transport,
    enrolment_token: str,
    state_folder: Path,
    train_file: Path,
    test_file: Path | None,
    memory_mb: float,
    key: str | None,
    model_name: str,
    threads: int,
    patience: float,
    once: bool,
    as_json: bool,
) -> None:
    """Be one emulated device: check in, fetch, compute, hand in, until the coordinator has nothing more to do."""
    from chainfed.harness.device import DeviceSettings, run_device

    settings = DeviceSettings(
        coordinator=coordinator,
        state_folder=state_folder,
        train_file=train_file,
        test_file=test_file,
        memory_budget_bytes=int(memory_mb * 1_000_000),
        device_key=key,
        model_name=model_name,
        threads=threads,
        patience_seconds=patience,
        once=once,
        transport=transport,
        enrolment_token=enrolment_token,
    )
    report = run_device(settings, on_event=_Narrator())
    if as_json:
        print_json(_as_json(report))
    else:
        _show(report)


class _Narrator:
    """Says on standard error what the device does; a wait with the same reason is said once."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, event: DeviceEvent) -> None:
        line = event.message if event.round is None else f"Round {event.round}: {event.message}"
        if event.kind == "assignment":
            line = event.message
        if line and line != self._last:
            err.print(line, markup=False)
        self._last = line


def _as_json(report: DeviceReport) -> dict[str, object]:
    return {
        "device_id": report.device_id,
        "assignments": report.assignments,
        "bytes_down": report.bytes_down,
        "bytes_up": report.bytes_up,
        "peak_anonymous_bytes": report.peak_anonymous_bytes,
        "peak_resident_bytes": report.peak_resident_bytes,
        "cpu_seconds": report.cpu_seconds,
        "reason": report.reason,
    }


def _show(report: DeviceReport) -> None:
    result = table(f"Device {report.device_id}", "what", "value")
    for kind, count in sorted(report.assignments.items()):
        result.add_row(kind, str(count))
    result.add_row("received", megabytes(report.bytes_down))
    result.add_row("sent", megabytes(report.bytes_up))
    result.add_row("peak of anonymous memory over idle", megabytes(report.peak_anonymous_bytes))
    result.add_row("the same with pages of mapped files", megabytes(report.peak_resident_bytes))
    result.add_row("processor time", f"{report.cpu_seconds:.1f} s")
    out.print(result)
