"""How every command speaks: words and progress on standard error, the result on standard output, as text or as one
JSON object."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

Function = TypeVar("Function", bound=Callable[..., Any])

err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True)


def json_option(function: Function) -> Function:
    """The `--json` flag; the command receives it as `as_json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the result as one JSON object on standard output."
    )(function)


def print_json(result: Mapping[str, Any]) -> None:
    """Writes one JSON object and a line end to standard output."""
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()


def progress(disabled: bool = False) -> Progress:
    """A progress display on standard error with count, elapsed and remaining time; silent where standard error is no
    terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=disabled or not err.is_terminal,
    )


def table(title: str, *columns: str) -> Table:
    """A table whose first column is left-aligned and whose others are right-aligned."""
    result = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        result.add_column(column, justify="left" if index == 0 else "right")
    return result


def megabytes(count: float) -> str:
    """Bytes as decimal megabytes with one digit: 1.5 MB."""
    return f"{count / 1e6:.1f} MB"
