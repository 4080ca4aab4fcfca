"""`chainfed evaluate`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

import click

from chainfed.core.console import json_option, out, print_json, progress
from chainfed.core.manifest import Bundle
from chainfed.runtime.program import set_threads
from chainfed.toolchain.evaluate import evaluate_bundle


@click.command(epilog="Example: chainfed evaluate ./bundle --adapters run/adapters.safetensors --data test.jsonl.gz")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--adapters",
    type=click.Path(path_type=Path),
    help="The adapters of a run; without it, the bundle's untrained ones.",
)
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    help="JSON lines (.gz): `text` and `label`, or passages for a language model.",
)
@json_option
def command(bundle: Path, adapters: Path | None, data: Path, as_json: bool) -> None:
    """Measure accuracy and loss of BUNDLE on a data file, with the programs that devices run."""
    opened = Bundle(bundle)
    set_threads(os.cpu_count() or 1)
    with progress() as display:
        task = display.add_task("Evaluating layer by layer", total=None)

        def show(done: int, total: int) -> None:
            display.update(task, completed=done, total=total)

        evaluation = evaluate_bundle(opened, data, adapters, show)
    if as_json:
        print_json(asdict(evaluation))
        return
    what = "tokens" if opened.manifest.is_language_model else "examples"
    out.print(f"Accuracy {evaluation.accuracy:.4f}, loss {evaluation.loss:.4f} on {evaluation.examples} {what}.")
