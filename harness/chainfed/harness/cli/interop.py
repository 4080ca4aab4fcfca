"""`chainfed interop`: named cases against any device."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from chainfed.core.console import err, json_option, out, print_json, progress, table
from chainfed.core.errors import BadInputError, InteropError
from chainfed.harness.interop.case import Case
from chainfed.harness.interop.ground import PYTHON_DEVICE, GivenBundle, prepare
from chainfed.harness.interop.runner import CASES, CaseResult, choose, run_cases

_FILE = click.Path(path_type=Path)


@click.command(epilog='Example: chainfed interop --device "java -jar my-device.jar" --case KILLED_MID_STEP')
@click.option(
    "--device",
    default=shlex.join(PYTHON_DEVICE),
    metavar="COMMAND",
    help="How the device is started; it is given the options of `chainfed device`.  [default: `chainfed device`]",
)
@click.option(
    "--case", "names", multiple=True, metavar="NAME", help="Run this case; may be given again.  [default: all]"
)
@click.option("--bundle", type=_FILE, help="A bundle in place of a small one that is made; needs --data.")
@click.option("--data", type=_FILE, help="Examples for --bundle; every fifth is held out.")
@click.option("--keep", type=_FILE, help="Folder, not there yet, for every file and log.  [default: all are removed]")
@click.option(
    "--limit",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the device may take for anything that is waited for.",
)
@click.option("--list", "only_list", is_flag=True, help="Say what the cases are about, and run none.")
@json_option
def command(
    device: str,
    names: tuple[str, ...],
    bundle: Path | None,
    data: Path | None,
    keep: Path | None,
    limit: float,
    only_list: bool,
    as_json: bool,
) -> None:
    """Disturb a device in named ways and hold what it does against the Python device, byte for byte.

    The device is any program that takes the options of `chainfed device`. It works for a real coordinator, behind a
    proxy that loses connections; it is killed, and its files are damaged.
    """
    cases = choose(names)
    if only_list:
        _list(cases, as_json)
        return
    given = _given(bundle, data)
    started = _split(device)
    with _folder(keep) as folder, progress() as display:
        task = display.add_task("preparing", total=len(cases))
        ground = prepare(folder / "ground", given, limit, lambda step: display.update(task, description=step))

        def told(result: CaseResult) -> None:
            err.print(f"{result.name}: {_outcome(result)}", markup=False)
            display.update(task, advance=1, description=result.name)

        display.update(task, description=cases[0].name)
        results = run_cases(cases, ground, started, folder / "cases", limit, told)
    _show(device, results, as_json)
    failed = [result.name for result in results if not result.passed]
    if failed:
        raise InteropError(
            f"The device failed {len(failed)} of {len(results)} cases: {', '.join(failed)}; run one alone with --case, "
            "and with --keep to look at its files."
        )


def _given(bundle: Path | None, data: Path | None) -> GivenBundle | None:
    if (bundle is None) != (data is None):
        raise BadInputError("A bundle needs examples of its task; give --bundle and --data together, or neither.")
    return None if bundle is None or data is None else GivenBundle(bundle, data)


def _split(device: str) -> list[str]:
    try:
        parts = shlex.split(device)
    except ValueError as error:
        raise BadInputError(f"--device {device!r} is no command ({error}); quote it as for a shell.") from error
    if not parts:
        raise BadInputError("--device is empty; give the command that starts the device.")
    return parts


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="chainfed-interop-") as name:
            yield Path(name)
        return
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise BadInputError(f"--keep {keep} cannot be made ({error.strerror}); give a folder not there yet.") from error
    yield keep.resolve()


def _list(cases: Sequence[Case], as_json: bool) -> None:
    if as_json:
        print_json({"cases": [{"name": case.name, "sentence": case.sentence} for case in cases]})
        return
    width = max(len(case.name) for case in CASES)
    for case in cases:
        out.print(f"{case.name:<{width}}  {case.sentence}", markup=False)


def _show(device: str, results: Sequence[CaseResult], as_json: bool) -> None:
    if as_json:
        passed = sum(result.passed for result in results)
        cases = [result.as_json() for result in results]
        print_json({"device": device, "passed": passed, "failed": len(results) - passed, "cases": cases})
        return
    rows = table(device, "case", "result", "seconds", "what was checked")
    rows.columns[-1].justify = "left"
    for result in results:
        rows.add_row(result.name, "passed" if result.passed else "failed", f"{result.seconds:.1f}", _what(result))
    out.print(rows)
    for result in results:
        if not result.passed and result.stderr:
            err.print(f"\nThe device's last lines in {result.name}:\n{result.stderr}", markup=False)


def _outcome(result: CaseResult) -> str:
    return f"{'passed' if result.passed else 'FAILED'} in {result.seconds:.1f} s; {_what(result)}"


def _what(result: CaseResult) -> str:
    if result.passed:
        return "; ".join(result.checked)
    return f"expected {result.expected}; seen: {result.seen}"
