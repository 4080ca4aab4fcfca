"""`chainfed export`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

import click

from chainfed.core.console import err, json_option, megabytes, print_json, progress
from chainfed.core.errors import BadInputError
from chainfed.core.manifest import Bundle
from chainfed.toolchain.cli.steps import shown_steps
from chainfed.toolchain.export import export_bundle
from chainfed.toolchain.export_settings import ExportSettings, OptimizerName, read_labels
from chainfed.toolchain.families.base import Pooling
from chainfed.toolchain.programs import TaskKind

_TASKS: dict[str, TaskKind] = {"classification": "classification", "language-modelling": "language_modelling"}


@click.command(epilog="Example: chainfed export ./bert-base --labels labels.json --out ./bundle --seq-len 64")
@click.argument("model")
@click.option("--task", type=click.Choice(list(_TASKS)), default="classification", show_default=True)
@click.option("--labels", metavar="N|FILE", help="A classifier's number of labels, or a file that names them.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option("--seq-len", default=128, show_default=True, help="Tokens in a row; longer texts are cut.")
@click.option("--batch-size", default=8, show_default=True, help="Rows in a batch.")
@click.option("--adapter-dim", default=32, show_default=True, help="Bottleneck of the adapters.")
@click.option(
    "--windows",
    metavar="LIST",
    help="Window sizes to support, such as 1,2,3 (the default, as far as it fits).",
)
@click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option(
    "--pooling", type=click.Choice(get_args(Pooling)), help="How tokens become features.  [default: by model]"
)
@click.option(
    "--max-target-tokens",
    type=int,
    help="Positions of a batch that go through a language model's head.  [default: all]",
)
@click.option("--packing", is_flag=True, help="Several texts for a language model share a row.")
@click.option(
    "--chat-template",
    metavar="plain|FILE",
    help="How a language model reads conversations.  [default: the tokenizer's template, or plain headings]",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the initial adapters and heads.")
@click.option("--force", is_flag=True, help="Replace the bundle that lies at --out.")
@json_option
def command(
    model: str,
    task: str,
    labels: str | None,
    out: Path,
    seq_len: int,
    batch_size: int,
    adapter_dim: int,
    windows: str | None,
    optimizer: OptimizerName,
    pooling: Pooling | None,
    max_target_tokens: int | None,
    packing: bool,
    chat_template: str | None,
    seed: int,
    force: bool,
    as_json: bool,
) -> None:
    """Turn MODEL, a Hugging Face model folder or a name on the hub, into a bundle."""
    settings = ExportSettings(
        model=model,
        labels=read_labels(labels) if labels is not None else (),
        out=out,
        task=_TASKS[task],
        seq_len=seq_len,
        batch_size=batch_size,
        adapter_dim=adapter_dim,
        windows=parse_windows(windows) if windows is not None else None,
        optimizer=optimizer,
        pooling=pooling,
        max_target_tokens=max_target_tokens,
        packing=packing,
        chat_template=chat_template,
        seed=seed,
        force=force,
    )
    started = time.monotonic()
    with progress() as display, shown_steps(display, "Exporting") as on_progress:
        bundle = export_bundle(settings, on_progress)
    seconds = time.monotonic() - started
    if as_json:
        print_json(_result(bundle, seconds))
        return
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    err.print(f"Wrote {out} ({megabytes(size)}) in {seconds:.0f} s. See it with: chainfed inspect {out}")


def parse_windows(text: str) -> tuple[int, ...]:
    """Window sizes from a list such as "1,2,3". Raises BadInputError when it is none."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise BadInputError(f"--windows {text!r} is no list of numbers; write it like 1,2,3.") from error


def _result(bundle: Bundle, seconds: float) -> dict[str, object]:
    return {
        "bundle": str(bundle.folder),
        "manifest_sha256": bundle.manifest_sha256,
        "bytes": sum(entry.bytes for entry in bundle.manifest.files.values()),
        "programs": sorted(bundle.manifest.programs),
        "seconds": round(seconds, 3),
    }
