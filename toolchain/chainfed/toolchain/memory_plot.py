"""The picture of what window sizes need: a line for each shape against the budget, as PNG or SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from chainfed.core.errors import BadInputError
from chainfed.toolchain.memory_fit import RoundMemory

SUFFIXES = (".png", ".svg")


def check_plot_path(path: Path) -> None:
    """Raises BadInputError unless a picture can be written to `path`."""
    if path.suffix.lower() not in SUFFIXES:
        raise BadInputError(f"--plot {path} is neither .png nor .svg; give a file name that ends in one of them.")
    if not path.absolute().parent.is_dir():
        raise BadInputError(f"--plot {path}: there is no folder {path.absolute().parent}; make it first.")


def plot_memory(rounds: Sequence[RoundMemory], budget: int, title: str, path: Path) -> None:
    """Draws own memory by window size, a line for each shape, and the budget; measured points are filled.

    Raises BadInputError when the file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for shape in sorted({(entry.seq_len, entry.batch_size) for entry in rounds}):
        line = [entry for entry in rounds if (entry.seq_len, entry.batch_size) == shape]
        sizes, megabytes = [entry.window_size for entry in line], [entry.own_bytes / 1e6 for entry in line]
        filled = "full" if line[0].measured else "none"
        axes.plot(sizes, megabytes, "o-", fillstyle=filled, label=f"{shape[1]} rows of {shape[0]} tokens")
    axes.axhline(budget / 1e6, color="#444444", linestyle="--", label="budget")
    axes.set_xticks(sorted({entry.window_size for entry in rounds}))
    axes.set_xlabel("window size, layers")
    axes.set_ylabel("own memory of a round, MB (open points: estimated)")
    axes.set_ylim(bottom=0)
    axes.set_title(title)
    axes.legend()
    try:
        figure.savefig(path, dpi=144)
    except OSError as error:
        raise BadInputError(f"--plot {path} cannot be written ({error.strerror}); give another place.") from error
