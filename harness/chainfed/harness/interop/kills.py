"""Cases in which the device is killed in the middle of its computing."""

from __future__ import annotations

from collections.abc import Callable

from chainfed.harness.interop.case import Case, Stand, require_bytes
from chainfed.harness.interop.ground import ReferenceUpdate
from chainfed.harness.interop.state_folder import Progress
from chainfed.harness.interop.trial import NotSetUp, Trial, require
from chainfed.v1 import device_service_pb2 as pb

Reached = Callable[[Progress], bool]


class KilledMidStep(Case):
    """See `sentence`."""

    name = "KILLED_MID_STEP"
    sentence = "kill -9 between two training steps: no step that was done is done again, and the bytes are the same."

    def run(self, stand: Stand) -> list[str]:
        """Kills it after a quarter and after a half of the steps."""
        expected = stand.ground.first
        total = expected.journal.steps.total()
        with stand.trial() as trial:
            kills = [_kill(trial, expected, _after_steps(least)) for least in (total // 4, total // 2)]
            for killed in kills:
                if not 1 <= killed.steps.total() < total:
                    raise NotSetUp(f"the kill came after {killed.steps.total()} of {total} steps")
            found, same = _finish(trial, expected)
        _require_continuation(kills, found)
        require(
            found.steps == expected.journal.steps,
            f"{total} training steps in the journal, each once",
            f"{found.steps.total()} steps",
        )
        return [
            f"kills after steps {_numbers(kills, lambda each: each.steps.total())} of {total}, none done again",
            same,
        ]


class KilledMidPrefix(Case):
    """See `sentence`."""

    name = "KILLED_MID_PREFIX"
    sentence = "kill -9 within a layer's pass over the batches: no batch that was done is done again, same bytes."

    def run(self, stand: Stand) -> list[str]:
        """Kills it once in the middle of the first layer's pass and once in that of the last one below the window."""
        expected = stand.ground.first
        last_depth, num_batches = expected.assignment.train.first_layer, expected.journal.steps.total()
        passes = [(depth, batch) for depth in range(last_depth + 1) for batch in range(1, num_batches + 1)]
        if last_depth < 1:
            raise NotSetUp("no layer lies below the run's first window; give another bundle or data")
        depths = sorted({1, last_depth})
        with stand.trial() as trial:
            kills = [_kill(trial, expected, _within(depth, num_batches // 3)) for depth in depths]
            for depth, killed in zip(depths, kills, strict=True):
                at_depth, batches = killed.passes[-1] if killed.passes else (-1, 0)
                if at_depth != depth or not 0 < batches < num_batches or killed.steps:
                    raise NotSetUp(
                        f"the kill came at batch {batches} of {num_batches} of depth {at_depth}, not {depth}"
                    )
            found, same = _finish(trial, expected)
        _require_continuation(kills, found)
        require(
            found.passes == passes,
            f"{len(passes)} batches through layers in the journal, each once and in order",
            f"{len(found.passes)} of them",
        )
        where = ", ".join(
            f"depth {depth} after {killed.passes[-1][1]}" for depth, killed in zip(depths, kills, strict=True)
        )
        return [f"kills at {where} of {num_batches} batches, none done again", same]


def _after_steps(least: int) -> Reached:
    return lambda found: found.steps.total() >= least


def _within(depth: int, least: int) -> Reached:
    return lambda found: bool(found.passes) and found.passes[-1] >= (depth, least)


def _kill(trial: Trial, expected: ReferenceUpdate, reached: Reached) -> Progress:
    """Starts the device, kills it as soon as its journal has come so far, and returns what it left."""
    device = trial.start_device()
    assignment = trial.assignment(expected.assignment.round)
    trial.until(
        lambda: reached(trial.journal(assignment)) or assignment.assignment_id in trial.journals,
        "a journal that grows with every batch and step",
    )
    device.kill()
    return trial.journal(assignment)


def _finish(trial: Trial, expected: ReferenceUpdate) -> tuple[Progress, str]:
    """Starts the device again; its journal when it handed in, and what was checked of the update."""
    trial.start_device()
    assignment: pb.Assignment = trial.assignment(expected.assignment.round)
    same = require_bytes(trial, trial.update(assignment), expected)
    return trial.journals[assignment.assignment_id], same


def _require_continuation(kills: list[Progress], found: Progress) -> None:
    """Raises CaseFailed unless the last journal begins with all that stood in it at each kill.

    Its notes of processor time make a journal that was begun anew another one, even if all the rest is the same.
    """
    for killed in kills:
        if not killed.find("usage"):
            raise NotSetUp("the journal had no record of usage yet when the device was killed")
        require(
            found.data.startswith(killed.data),
            f"the journal to go on after its {len(killed.records)} records when the device was killed",
            "a journal that was begun anew or changed",
        )


def _numbers(kills: list[Progress], number: Callable[[Progress], int]) -> str:
    return " and ".join(str(number(killed)) for killed in kills)
