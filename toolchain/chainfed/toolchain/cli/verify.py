"""`chainfed verify`."""

from __future__ import annotations

import math
from pathlib import Path

import click

from chainfed.core.console import err, json_option, out, print_json, progress, table
from chainfed.core.errors import VerificationError
from chainfed.core.manifest import Bundle
from chainfed.toolchain.cli.steps import shown_steps
from chainfed.toolchain.verify import Verification, verify_bundle


@click.command(epilog="Example: chainfed verify ./bundle --data test.jsonl.gz")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Real text to run on, JSON lines with `text` and `label`; without it, a few built-in sentences.",
)
@click.option("--tolerance", default=1e-4, show_default=True, type=click.FloatRange(min=0, min_open=True))
@json_option
def command(bundle: Path, data: Path | None, tolerance: float, as_json: bool) -> None:
    """Hold every program of BUNDLE, on the ExecuTorch runtime, against PyTorch eager.

    The error is the largest difference of any output (losses, updated weights, hidden states), relative where the value
    exceeds 1. Block programs of int8 and int4 bundles round activations as well as weights; their error is that of the
    result's norm, and may be 0.05. Ends with exit code 6 when a program exceeds its tolerance.
    """
    opened = Bundle(bundle)
    with progress() as display, shown_steps(display, "Verifying") as on_progress:
        verification = verify_bundle(opened, data, tolerance, on_progress)
    if as_json:
        print_json(_result(verification))
    else:
        _show(verification)
    failed = [name for name, report in verification.programs.items() if not report.ok]
    if failed:
        worst = max(failed, key=lambda name: verification.programs[name].max_error)
        raise VerificationError(
            f"{bundle}: {', '.join(failed)} differ from PyTorch by more than "
            f"{verification.programs[worst].tolerance:g}; the largest error is "
            f"{verification.programs[worst].max_error:.2g} in {worst}, {verification.programs[worst].worst}. "
            "Do not train with this bundle; export it again."
        )
    err.print(f"All {len(verification.programs)} programs agree with PyTorch within their tolerance.")


def _show(verification: Verification) -> None:
    shown = table("Programs against PyTorch eager", "program", "largest error", "time / eager", "cases")
    for name, report in verification.programs.items():
        shown.add_row(name, f"{report.max_error:.1e}", f"{report.time_ratio:.2f}", str(report.cases))
    out.print(shown)


def _result(verification: Verification) -> dict[str, object]:
    """The JSON result; a `max_error` that is not finite is null."""
    return {
        "ok": verification.ok,
        "tolerance": verification.tolerance,
        "programs": {
            name: {
                "max_error": report.max_error if math.isfinite(report.max_error) else None,
                "time_ratio": round(report.time_ratio, 4),
                "tolerance": report.tolerance,
                "worst": report.worst,
                "cases": report.cases,
            }
            for name, report in verification.programs.items()
        },
    }
