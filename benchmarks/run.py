"""Measures what the README claims. `make bench` runs everything; `make bench ARGS="memory --quick"` one part.

    verification  every program against PyTorch eager: error and time ratio (what `chainfed verify` prints)
    families      every family exported and verified: error, time ratio, arena
    memory        a device's anonymous peak against the manifest's plan, each window size, and end-to-end training in
    PyTorch
    precision     frozen weights as f32, f16, int8 and int4: size, memory, speed, logits and accuracy
    federation    the chain beside end-to-end training of all adapters and linear probing, same federation, three seeds
    android       the SDK's device on a JVM beside the Python device: step, first step, memory; after `make android`
    loading       memory that exporting a checkpoint of LLaMA-2-7B sizes takes; --layers 32 for all of it

`make bench-programs` measures programs of the sizes of large models.

The results go to `runs/bench/*.json`; the tables to standard output. Models and data come from $CHAINFED_SHARED, else
../shared.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import android
import families
import federation
import loading
import memory
import precision
import verification

PARTS: dict[str, Callable[[Path, Path, bool], None]] = {
    "verification": verification.measure,
    "families": families.measure,
    "memory": memory.measure,
    "precision": precision.measure,
    "federation": federation.measure,
    "android": android.measure,
    "loading": loading.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; all when none is named")
    parser.add_argument(
        "--quick", action="store_true", help="small data and one seed: to see that it runs, not to quote"
    )
    parser.add_argument(
        "--layers",
        type=int,
        default=loading.DEFAULT_LAYERS,
        help="layers of the model of `loading` (32: 27 GB of disk)",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"unknown part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    shared = Path(os.environ.get("CHAINFED_SHARED", Path(__file__).parents[2] / "shared")).resolve()
    if not (shared / "models/minilm-l6").is_dir():
        sys.exit(f"The benchmarks need the models and data in {shared}, which is not there; set CHAINFED_SHARED.")
    PARTS["loading"] = partial(loading.measure, layers=options.layers)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.parts or PARTS:
        PARTS[part](shared, options.out.resolve(), options.quick)


if __name__ == "__main__":
    main()
