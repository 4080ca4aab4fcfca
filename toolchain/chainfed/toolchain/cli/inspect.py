"""`chainfed inspect`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from chainfed.core.console import json_option, megabytes, out, print_json, table
from chainfed.core.errors import BadInputError
from chainfed.core.manifest import Bundle
from chainfed.toolchain.inspect import describe_bundle

_SHOWN_LABELS = 8


@click.command(
    epilog="Example: chainfed inspect ./bundle --json\n\n"
    "Example: chainfed inspect ./roberta-large --memory 200MB --plot fit.png"
)
@click.argument("bundle", metavar="BUNDLE_OR_MODEL")
@click.option(
    "--memory", metavar="BUDGET", help="Show which window sizes fit a phone with so much, such as 200MB or 1.5GiB."
)
@click.option("--batch-sizes", metavar="LIST", help="With --memory: batch sizes to ask about, such as 1,4,8.")
@click.option("--seq-lens", metavar="LIST", help="With --memory: tokens in a row to ask about, such as 128,256.")
@click.option("--windows", metavar="LIST", help="With --memory: window sizes to ask about, such as 1,2,3,6.")
@click.option("--adapter-dim", type=click.IntRange(min=1), help="With --memory: a model's bottleneck.  [default: 32]")
@click.option("--plot", type=click.Path(path_type=Path), help="With --memory: draw it, as .png or .svg.")
@json_option
def command(
    bundle: str,
    memory: str | None,
    batch_sizes: str | None,
    seq_lens: str | None,
    windows: str | None,
    adapter_dim: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Show the layers, programs, shards and memory plan of a bundle.

    With --memory, show which window sizes fit the budget, at which batch and length: of a bundle, or of a Hugging Face
    model before it is exported (only its config.json is read). What an export has not measured is estimated.
    """
    if memory is not None:
        _show_memory(bundle, memory, (batch_sizes, seq_lens, windows), adapter_dim, plot, as_json)
        return
    if any(option is not None for option in (batch_sizes, seq_lens, windows, adapter_dim, plot)):
        raise BadInputError(
            "--batch-sizes, --seq-lens, --windows, --adapter-dim and --plot go with --memory; add a budget, such as "
            "--memory 200MB."
        )
    facts = describe_bundle(Bundle(Path(bundle)))
    if as_json:
        print_json(facts)
        return
    _show_facts(facts)
    _show_files(facts)
    _show_plans(facts)


def _show_memory(
    target: str,
    memory: str,
    lists: tuple[str | None, str | None, str | None],
    adapter_dim: int | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    # Tracing takes seconds to import, and describing a bundle needs none of it.
    from chainfed.toolchain.cli.memory import parse_sizes, show_fit
    from chainfed.toolchain.memory_fit import ask, parse_bytes
    from chainfed.toolchain.memory_plot import check_plot_path

    budget = parse_bytes(memory)
    if plot is not None:
        check_plot_path(plot)
    names = ("--batch-sizes", "--seq-lens", "--windows")
    rows, lengths, windows = (parse_sizes(name, text) for name, text in zip(names, lists, strict=True))
    show_fit(target, ask(target, rows, lengths, windows, adapter_dim), budget, plot, as_json)


def _show_facts(facts: Mapping[str, Any]) -> None:
    model, task, shapes = facts["model"], facts["task"], facts["shapes"]
    shown = table(f"Bundle {facts['bundle']}", "", "")
    for name, value in (
        ("model", f"{model['family']}, {model['num_layers']} layers, hidden size {model['hidden_size']}"),
        ("parameters", f"{model['num_parameters']:,}, matrices stored as {model['dtype']}"),
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
        return f"language modelling, at most {task['max_target_tokens']} targets a row{packing}"
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
