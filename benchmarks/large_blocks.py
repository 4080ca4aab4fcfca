"""A frozen layer of RoBERTa-large sizes below the window, its weights as f32, f16, int8 and int4, beside eager f32."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.table import Table
from transformers import RobertaConfig

from chainfed.core.console import megabytes, table
from chainfed.core.manifest import ProgramEntry, TensorSpec, WeightDtype
from chainfed.runtime.program import Program
from chainfed.toolchain.families import family_for
from chainfed.toolchain.frozen_block import lower_frozen_block
from chainfed.toolchain.lowering import lower
from chainfed.toolchain.memory_probe import measure_peaks
from chainfed.toolchain.programs import ProgramSettings
from chainfed.toolchain.quantization import StoredArray, matrices, narrow
from chainfed.toolchain.reference import Reference, wide_tensors
from chainfed.toolchain.steps import block_programs
from chainfed.toolchain.verify import norm_error

_DTYPES: tuple[WeightDtype, ...] = get_args(WeightDtype)


def measure(config: RobertaConfig, repeats: int) -> dict[str, Any]:
    """Time, memory and error by dtype: random weights, 8 rows of 256 tokens, adapter of 64, one thread."""
    family = family_for(config)
    generator = np.random.default_rng(0)
    weights = {
        name: np.ones(shape, np.float32) if "LayerNorm.weight" in name else _normal(generator, shape)
        for name, shape in family.layer_shapes.items()
    }
    results: dict[str, Any] = {}
    for dtype in _DTYPES:
        settings = ProgramSettings(family, 8, 256, 64, 2, windows=(1,), dtype=dtype)
        results[dtype] = _measure(settings, narrow(weights, matrices(family.layer_shapes), dtype), weights, repeats)
    return results


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> StoredArray:
    return (generator.normal(size=shape) * 0.02).astype(np.float32)


def _measure(
    settings: ProgramSettings, stored: Mapping[str, StoredArray], weights: Mapping[str, StoredArray], repeats: int
) -> dict[str, float]:
    definition = block_programs(settings)[0]
    holds = settings.blocks_hold_weights
    lowered = lower_frozen_block(settings, 0, stored) if holds else lower(definition)
    inputs, outputs = (
        tuple(TensorSpec(name=spec.name, shape=spec.shape, dtype=spec.dtype) for spec in specs)
        for specs in (definition.inputs, definition.outputs)
    )
    entry = ProgramEntry(file="x", inputs=inputs, outputs=outputs, arena_bytes=lowered.arena_bytes)
    generator = torch.Generator().manual_seed(0)
    rows = {"h": torch.randn(8, 256, 1024, generator=generator), "mask": torch.ones(8, 256)}
    rows |= {f"adapter.{part}": torch.randn(64, 1024, generator=generator) * 0.02 for part in ("down", "up")}
    layer, exact = ({f"layer.{k}": torch.from_numpy(v) for k, v in each.items()} for each in (stored, weights))
    reference = Reference(settings)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "block.pte"
        path.write_bytes(lowered.data)
        peak = measure_peaks({definition.name: (path, entry)})[definition.name]
        with Program(path, entry) as program:
            given = rows if holds else rows | layer
            result = program.run(given)["h"]
            ratio = paired(
                lambda: program.run(given, clone_outputs=False), lambda: reference.run("block", rows | exact), repeats
            )
    return {
        "time_over_eager": ratio,
        "peak_anonymous_bytes": peak,
        "mapped_bytes": len(lowered.data) + (0 if holds else sum(array.nbytes for array in stored.values())),
        "error_to_f32": norm_error(result, reference.run("block", rows | exact)["h"]),
        "error_to_widened": norm_error(result, reference.run("block", wide_tensors(rows | layer))["h"]),
    }


def paired(one: Callable[[], object], other: Callable[[], object], repeats: int) -> float:
    """Median over pairs of processor time of `one` over that of `other`."""
    ratios = []
    for _ in range(repeats):
        started = time.process_time()
        one()
        between = time.process_time()
        other()
        ratios.append((between - started) / (time.process_time() - between))
    return statistics.median(ratios)


def show(results: Mapping[str, Any]) -> Table:
    """A table of what `measure` found."""
    large = table("A block of RoBERTa-large sizes, 8 x 256, one thread", *(
        "dtype", "time / eager f32", "anonymous peak", "mapped", "error to f32", "error to its own weights"
    ))  # fmt: skip
    for dtype, row in results.items():
        sizes = (megabytes(row["peak_anonymous_bytes"]), megabytes(row["mapped_bytes"]))
        errors = (f"{row['error_to_f32']:.1e}", f"{row['error_to_widened']:.1e}")
        large.add_row(dtype, f"{row['time_over_eager']:.2f}", *sizes, *errors)
    return large
