"""Every program against PyTorch eager: largest error and time ratio, for both optimisers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tasks import AGNEWS, bundle_of

from chainfed.core.console import out, table
from chainfed.toolchain.export_settings import OptimizerName


def measure(shared: Path, folder: Path, quick: bool) -> None:
    """Runs `chainfed verify` on the bundles of both optimisers and prints its figures."""
    rows = table("Programs against PyTorch eager, one thread", "program", "optimiser", "largest error", "time / eager")
    results = {}
    optimizers: tuple[OptimizerName, ...] = ("adamw",) if quick else ("adamw", "sgd")
    for optimizer in optimizers:
        bundle = bundle_of(AGNEWS, shared, folder, optimizer)
        command = [sys.executable, "-m", "chainfed.core", "verify", str(bundle.folder), "--json"]
        verdict = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        results[optimizer] = verdict
        for name, figures in verdict["programs"].items():
            rows.add_row(name, optimizer, f"{figures['max_error']:.1e}", f"{figures['time_ratio']:.2f}")
    out.print(rows)
    (folder / "verification.json").write_text(json.dumps(results, indent=1))
