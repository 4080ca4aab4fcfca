"""The part of `chainfed inspect` that answers what fits a memory budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.text import Text

from chainfed.core.console import err, megabytes, out, print_json, progress, table
from chainfed.core.errors import BadInputError
from chainfed.toolchain.cli.steps import shown_steps
from chainfed.toolchain.memory_fit import Question, RoundMemory, answer
from chainfed.toolchain.memory_plot import plot_memory


def parse_sizes(option: str, text: str | None) -> tuple[int, ...] | None:
    """Numbers from a list such as "1,4,8"; None without one. Raises BadInputError, naming `option`, for other text."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise BadInputError(f"{option} {text!r} is no list of numbers; write it like 1,4,8.") from error


def show_fit(target: str, question: Question, budget: int, plot: Path | None, as_json: bool) -> None:
    """Estimates what the question asks and prints it, as a table or as one JSON object; draws it when asked to."""
    with progress() as display, shown_steps(display, "Estimating") as on_progress:
        rounds = answer(question, on_progress)
    if plot is not None:
        plot_memory(rounds, budget, f"Memory of a training round: {Path(target).name}", plot)
    if as_json:
        print_json(_result(target, budget, rounds))
        return
    _show(target, question, budget, rounds)
    if plot is not None:
        err.print(f"Drew {plot}.")


def _show(target: str, question: Question, budget: int, rounds: Sequence[RoundMemory]) -> None:
    needs = {(entry.window_size, (entry.batch_size, entry.seq_len)): entry for entry in rounds}
    windows = question.settings.windows
    columns = [f"window of {size}" for size in windows]
    shown = table(f"What fits {megabytes(budget)}: {target}", "rows x tokens", *columns)
    for shape in question.shapes:
        shown.add_row(f"{shape[0]} x {shape[1]}", *(_cell(needs[size, shape], budget) for size in windows))
    shown.add_section()
    mapped = (needs[size, question.shapes[0]].mapped_bytes for size in windows)
    shown.add_row("mapped weights", *(megabytes(count) for count in mapped))
    out.print(shown)
    fitting = [entry for entry in rounds if entry.own_bytes <= budget]
    if not fitting:
        least = min(rounds, key=lambda entry: entry.own_bytes)
        out.print(
            f"Nothing of this fits. The least is {megabytes(least.own_bytes)}, with a window of {least.window_size} "
            f"and {least.batch_size} x {least.seq_len}."
        )
    out.print(
        "A device's own memory over its idle level. + fits, - does not; ~ is an estimate from the programs' graphs, "
        "the rest was measured at export."
    )


def _cell(entry: RoundMemory, budget: int) -> Text:
    fits = entry.own_bytes <= budget
    text = f"{'+' if fits else '-'} {'' if entry.measured else '~'}{megabytes(entry.own_bytes)}"
    return Text(text, style="green" if fits else "red")


def _result(target: str, budget: int, rounds: Sequence[RoundMemory]) -> Mapping[str, object]:
    return {
        "target": target,
        "budget_bytes": budget,
        "rounds": [
            {
                "window_size": entry.window_size,
                "batch_size": entry.batch_size,
                "seq_len": entry.seq_len,
                "own_bytes": entry.own_bytes,
                "mapped_bytes": entry.mapped_bytes,
                "fits": entry.own_bytes <= budget,
                "estimated": not entry.measured,
            }
            for entry in rounds
        ],
    }
