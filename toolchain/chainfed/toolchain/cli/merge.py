"""`chainfed merge`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from chainfed.core.console import err, json_option, print_json, progress
from chainfed.core.manifest import Bundle
from chainfed.toolchain.cli.steps import shown_steps
from chainfed.toolchain.merge_formats.agreement import Agreement
from chainfed.toolchain.merge_formats.merging import MergeFormat, MergeSettings, merge_as

_HINTS = {
    "hf": "Load it with transformers and trust_remote_code=True; README.md shows how.",
    "onnx": "Run model.onnx with onnxruntime; README.md shows how.",
    "executorch": "Run model.pte with ExecuTorch; metadata.json names its inputs and the labels.",
    "adapters": "Load it with the adapters library; README.md shows how.",
}


@click.command(
    epilog="Example: chainfed merge ./bundle --adapters run/adapters.safetensors --format onnx --out ./tuned"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--adapters", required=True, type=click.Path(path_type=Path), help="The tuned adapters of a run.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write.")
@click.option(
    "--format",
    "merge_format",
    type=click.Choice(get_args(MergeFormat)),
    default="hf",
    show_default=True,
    help="A Hugging Face folder, ONNX, one ExecuTorch program, or adapters for AdapterHub's library.",
)
@click.option(
    "--model",
    help="The model that BUNDLE was exported from, to merge its own weights instead of the bundle's in fewer bits.",
)
@click.option("--seq-len", type=int, help="Tokens that the ExecuTorch program takes.  [default: as the bundle]")
@click.option(
    "--tolerance",
    default=1e-4,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="How far logits of ONNX and ExecuTorch may lie from the Hugging Face folder's.",
)
@click.option("--force", is_flag=True, help="Replace the merged model of the same format that lies at --out.")
@json_option
def command(
    bundle: Path,
    adapters: Path,
    out: Path,
    merge_format: MergeFormat,
    model: str | None,
    seq_len: int | None,
    tolerance: float,
    force: bool,
    as_json: bool,
) -> None:
    """Write the model of BUNDLE with tuned adapters.

    A Hugging Face folder (hf) loads with AutoModelForSequenceClassification.from_pretrained(OUT,
    trust_remote_code=True); it needs transformers, not ChainFed. ONNX takes any batch and length; an ExecuTorch program
    takes one text of --seq-len tokens. Both are held against the Hugging Face model before they are kept: exit code 6
    when they differ.
    """
    opened = Bundle(bundle)
    settings = MergeSettings(adapters, out, merge_format, seq_len, tolerance, force, model)
    with progress() as display, shown_steps(display, "Merging") as on_progress:
        agreement = merge_as(opened, settings, on_progress)
    if as_json:
        print_json(_result(opened, settings, agreement))
        return
    if agreement is not None:
        err.print(
            f"The largest difference from the Hugging Face model is {agreement.largest_difference:.1e}, over "
            f"{agreement.batches} batches whose largest logit is {agreement.largest_logit:.2g}."
        )
    err.print(f"Wrote {out}. {_HINTS[merge_format]}")


def _result(bundle: Bundle, settings: MergeSettings, agreement: Agreement | None) -> dict[str, object]:
    """The JSON result; `largest_difference` is null where the form is not run here."""
    return {
        "out": str(settings.out),
        "format": settings.merge_format,
        "labels": list(bundle.manifest.task.labels),
        "largest_difference": agreement.largest_difference if agreement else None,
    }
