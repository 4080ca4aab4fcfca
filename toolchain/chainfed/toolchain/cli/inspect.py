"""`chainfed inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from chainfed.core.console import json_option, megabytes, out, print_json, table
from chainfed.core.manifest import Bundle
from chainfed.toolchain.inspect import describe_bundle

_SHOWN_LABELS = 8


@click.command(epilog="Example: chainfed inspect ./bundle --json")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
def command(bundle: Path, as_json: bool) -> None:
    """Show the layers, programs, shards and memory plan of BUNDLE."""
    facts = describe_bundle(Bundle(bundle))
    if as_json:
        print_json(facts)
        return
    _show_facts(facts)
    _show_files(facts)
    _show_plans(facts)


def _show_facts(facts: Mapping[str, Any]) -> None:
    model, task, shapes = facts["model"], facts["task"], facts["shapes"]
    shown = table(f"Bundle {facts['bundle']}", "", "")
    for name, value in (
        ("model", f"{model['family']}, {model['num_layers']} layers, hidden size {model['hidden_size']}"),
        ("parameters", f"{model['num_parameters']:,}"),
        ("task", _task(task)),
        ("batch", f"{shapes['batch_size']} rows of {shapes['seq_len']} tokens"),
        ("adapters", f"bottleneck {facts['adapter']['bottleneck']}, {megabytes(facts['state_bytes'])} in all"),
        ("optimizer", facts["optimizer"]["name"]),
        ("size", megabytes(facts["bytes"])),
    ):
        shown.add_row(name, value)
    out.print(shown)


def _task(task: Mapping[str, Any]) -> str:
    if task["kind"] == "language_modelling":
        packing = ", several texts a row" if task["packing"] else ""
        return f"language modelling, at most {task['max_target_tokens']} targets a batch{packing}"
    labels = task["labels"]
    names = ", ".join(labels[:_SHOWN_LABELS]) + (" ..." if len(labels) > _SHOWN_LABELS else "")
    return f"classification, {len(labels)} labels ({names}), {task['pooling']} pooling"


def _show_files(facts: Mapping[str, Any]) -> None:
    programs = table("Programs", "program", "size", "arena", "inputs", "outputs")
    for name, program in facts["programs"].items():
        row = (megabytes(program["bytes"]), megabytes(program["arena_bytes"]))
        programs.add_row(name, *row, str(program["inputs"]), str(program["outputs"]))
    out.print(programs)
    shards = table("Weights", "shard", "size")
    for name, size in facts["shards"].items():
        shards.add_row(name, megabytes(size))
    out.print(shards)


def _show_plans(facts: Mapping[str, Any]) -> None:
    columns = ("its own", "arena", "workspace", "optimizer", "inputs", "mapped")
    plans = table("Memory of a device", "layers", *columns)
    rows = [("before window", facts["prefix"])]
    rows += [(f"window of {size}", plan) for size, plan in facts["windows"].items()]
    for name, plan in rows:
        parts = ("anonymous_bytes", "arena_bytes", "workspace_bytes", "optimizer_bytes", "io_bytes", "file_bytes")
        plans.add_row(name, *(megabytes(plan[part]) for part in parts))
    out.print(plans)
    out.print(
        f"The weights of the full model alone would take {megabytes(facts['full_model_bytes'])} in memory. A device "
        "maps the ones it needs from files, whose pages the system can take back at any time."
    )
