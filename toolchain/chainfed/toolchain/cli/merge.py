"""`chainfed merge`."""

from __future__ import annotations

from pathlib import Path

import click

from chainfed.core.console import err, json_option, print_json, progress
from chainfed.core.manifest import Bundle
from chainfed.toolchain.cli.steps import shown_steps
from chainfed.toolchain.merge import merge_bundle


@click.command(epilog="Example: chainfed merge ./bundle --adapters run/adapters.safetensors --out ./tuned")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--adapters", required=True, type=click.Path(path_type=Path), help="The tuned adapters of a run.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--model",
    help="The model that BUNDLE was exported from, to merge its own weights instead of the bundle's in fewer bits.",
)
@click.option("--force", is_flag=True, help="Replace the merged model that lies at --out.")
@json_option
def command(bundle: Path, adapters: Path, out: Path, model: str | None, force: bool, as_json: bool) -> None:
    """Write the model of BUNDLE with tuned adapters as a Hugging Face folder.

    The folder loads with AutoModelForSequenceClassification.from_pretrained(OUT, trust_remote_code=True); it
    needs transformers, not ChainFed.
    """
    opened = Bundle(bundle)
    with progress() as display, shown_steps(display, "Merging") as on_progress:
        merge_bundle(opened, adapters, out, force, model, on_progress)
    if as_json:
        print_json({"out": str(out), "labels": list(opened.manifest.task.labels)})
        return
    err.print(f"Wrote {out}. Load it with AutoModelForSequenceClassification and trust_remote_code=True.")
