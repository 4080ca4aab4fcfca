"""What a bundle holds, as plain values."""

from __future__ import annotations

from typing import Any

from chainfed.core.manifest import ADAPTERS_FILE, Bundle

_FLOAT_BYTES = 4


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Model and task facts, programs, shards and the memory plan of every window size, ready for JSON.

    `windows` is keyed by window size, as text. `full_model_bytes` is what the frozen model's weights alone would take
    in memory.
    """
    manifest = bundle.manifest
    model, sizes = manifest.model, manifest.files
    return {
        "bundle": str(bundle.folder),
        "format_version": manifest.format_version,
        "manifest_sha256": bundle.manifest_sha256,
        "created_by": manifest.created_by,
        "bytes": sum(entry.bytes for entry in sizes.values()),
        "full_model_bytes": model.num_parameters * _FLOAT_BYTES,
        "model": {
            "family": model.family,
            "num_layers": model.num_layers,
            "hidden_size": model.hidden_size,
            "vocab_size": model.vocab_size,
            "num_parameters": model.num_parameters,
            "language_head": model.language_head.model_dump() if model.language_head else None,
        },
        "task": manifest.task.model_dump(mode="json"),
        "shapes": manifest.shapes.model_dump(mode="json"),
        "adapter": manifest.adapter.model_dump(mode="json"),
        "optimizer": manifest.optimizer.model_dump(mode="json"),
        "defaults": manifest.defaults.model_dump(mode="json"),
        "state_bytes": sizes[ADAPTERS_FILE].bytes,
        "shards": {name: sizes[name].bytes for name in manifest.weight_files()},
        "programs": {
            name: {
                "bytes": sizes[entry.file].bytes,
                "arena_bytes": entry.arena_bytes,
                "inputs": len(entry.inputs),
                "outputs": len(entry.outputs),
            }
            for name, entry in manifest.programs.items()
        },
        "windows": {str(size): plan.model_dump(mode="json") for size, plan in sorted(manifest.windows.items())},
        "prefix": manifest.prefix.model_dump(mode="json"),
        "round_bytes": {str(size): manifest.round_bytes(size) for size in sorted(manifest.windows)},
    }
