"""`chainfed demo`."""

from __future__ import annotations

from pathlib import Path

import click

from chainfed.core.console import err, json_option, print_json
from chainfed.harness.cli.emulate import new_run_folder
from chainfed.harness.demo import find_task, run_demo


@click.command(epilog="Example: chainfed demo --model ./my-encoder --data ./labelled.jsonl")
@click.option("--model", type=click.Path(path_type=Path), help="A Hugging Face encoder folder.")
@click.option(
    "--data", type=click.Path(path_type=Path), help="Labelled texts, JSON lines; every fifth row is held out."
)
@click.option(
    "--out", "folder", type=click.Path(path_type=Path), help="Run folder, not there yet.  [default: runs/TIME]"
)
@json_option
def command(model: Path | None, data: Path | None, folder: Path | None, as_json: bool) -> None:
    """Show the whole chain on one machine, in about two minutes.

    Runs on --model and --data when they are given, else on the real model and texts in $CHAINFED_SHARED, else on a
    small encoder with
    random weights and generated texts, and says which.
    """
    run_folder = new_run_folder(folder)
    task = find_task(run_folder, model, data)
    source = "a random-weight encoder and generated texts, made on the spot" if task.made_up else f"{task.model}"
    err.print(f"[bold]ChainFed demo[/] on {source}")
    result = run_demo(task, run_folder, err)
    if as_json:
        print_json(result.as_json())
