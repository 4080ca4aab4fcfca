"""The picture of a run: accuracy by round, and the window's walk along the chain, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle


@dataclass(frozen=True)
class WindowStep:
    """One training round: its number from 1, the first layer (0-based) and size of its window, and the training
    loss."""

    round: int
    first_layer: int
    window_size: int
    loss: float


@dataclass(frozen=True)
class RunHistory:
    """What a plot shows. `evaluations`: (training rounds done, accuracy 0 to 1); `foat_start` 0-based."""

    evaluations: Sequence[tuple[int, float]]
    steps: Sequence[WindowStep]
    num_layers: int
    foat_start: int
    chance: float


def plot_run(history: RunHistory, folder: Path) -> tuple[Path, Path]:
    """Writes `run.png` and `run.svg` into `folder` and returns their paths."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    accuracy, walk = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _draw_accuracy(accuracy, history)
    _draw_walk(walk, history)
    paths = folder / "run.png", folder / "run.svg"
    figure.savefig(paths[0], dpi=144)
    figure.savefig(paths[1])
    return paths


def _draw_accuracy(axes: matplotlib.axes.Axes, history: RunHistory) -> None:
    rounds = [rounds_done for rounds_done, _ in history.evaluations]
    axes.plot(
        rounds, [100 * value for _, value in history.evaluations], "o-", color="#1b6ca8", label="held-out accuracy"
    )
    axes.axhline(100 * history.chance, color="#999999", linestyle=":", label="chance")
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 100)
    loss = axes.twinx()
    loss.plot(
        [step.round for step in history.steps],
        [step.loss for step in history.steps],
        color="#d1495b",
        alpha=0.6,
        label="training loss",
    )
    loss.set_ylabel("training loss (nats)")
    loss.set_ylim(bottom=0)
    handles = [*axes.get_lines(), *loss.get_lines()]
    axes.legend(handles, [str(handle.get_label()) for handle in handles], loc="lower right")


def _draw_walk(axes: matplotlib.axes.Axes, history: RunHistory) -> None:
    for step in history.steps:
        axes.add_patch(
            Rectangle(
                (step.round - 0.5, step.first_layer - 0.5), 1, step.window_size, facecolor="#edae49", edgecolor="white"
            )
        )
    axes.axhline(history.foat_start - 0.5, color="#444444", linestyle="--", linewidth=1)
    axes.annotate("FOAT start", (0, history.foat_start - 0.5), textcoords="offset points", xytext=(2, 3), fontsize=8)
    axes.set_ylim(-0.5, history.num_layers - 0.5)
    axes.set_yticks(range(history.num_layers))
    axes.set_ylabel("layer, from 0 (window in colour)")
    axes.set_xlabel("training round")
    axes.set_xlim(-0.5, max([step.round for step in history.steps], default=1) + 0.5)
