"""A run, carried out as in Algorithm 1 of the paper. Knows neither gRPC nor SQL: store, files and clock are
passed in.

Every step is recorded before the next begins, and each can be taken again: after a kill at any point the
loop reads where the run stands and goes on there, in the same round with the same assignments.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from chainfed.coordinator import outcomes, selection
from chainfed.coordinator.admission import choose_window_size
from chainfed.coordinator.assignments import new_assignments, template
from chainfed.coordinator.ports import Blobs, Clock, RoundStore, UpdateFiles
from chainfed.coordinator.records import (
    WORKING_STATES,
    Assignment,
    Device,
    Round,
    RoundKind,
    RoundOutcome,
    RoundState,
    Run,
    RunState,
)
from chainfed.coordinator.schedule import PlannedRound, Window, planned_rounds, window_of
from chainfed.core.errors import RunFailedError
from chainfed.core.manifest import Manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long the loop waits. A device is present when it was seen within `present_ms`; devices that were
    present when the last round opened get `return_ms` to come back (after a restart of the coordinator)
    before a round opens without them."""

    present_ms: int = 60_000
    return_ms: int = 30_000
    attempts: int = 3
    poll_seconds: float = 1.0


class HaltedError(Exception):
    """The run was paused or ended from outside, or the coordinator is stopping."""


class RunLoop:
    """Carries one run out. `manifest` is that of the run's bundle."""

    def __init__(
        self,
        run_id: str,
        manifest: Manifest,
        store: RoundStore,
        blobs: Blobs,
        updates: UpdateFiles,
        clock: Clock,
        patience: Patience | None = None,
    ) -> None:
        self._run_id, self._manifest = run_id, manifest
        self._store, self._blobs, self._updates, self._clock = store, blobs, updates, clock
        self._patience = patience or Patience()
        self._stopping = False

    def stop(self) -> None:
        """Lets the loop end at its next step; nothing is lost."""
        self._stopping = True

    async def carry_out(self) -> None:
        """Takes the run from where it stands to its end.

        Raises HaltedError when it is paused, ended from outside or stopped; MemoryBudgetError or
        RunFailedError when it cannot go on.
        """
        run = await self._working_run()
        config = run.config
        # Phase 1, lines 1-3: the first round is FOAT on all devices; its outcome sets L_start and Q.
        # Phase 2, lines 4-12: for each round. Those that were closed before a restart are not held again.
        for planned in planned_rounds(config.warmup_rounds, config.rounds, config.evaluate_every):
            if planned.number >= run.next_round:
                run = await self._enter(run, planned.kind)
                run = await self._hold(run, planned)
        # Line 13: the newest checkpoint is the tuned model.
        await self._store.advance(self._run_id, RunState.COMPLETED)

    async def _hold(self, run: Run, planned: PlannedRound) -> Run:
        """One round of Algorithm 1. Returns the run after it."""
        while True:
            # Lines 5-6: sample the devices S_r and give each its assignment, or go on with the round that a
            # restart left open.
            current = await self._store.latest_attempt(run.run_id, planned.number)
            if current is None or current.state is RoundState.DROPPED:
                attempt = current.attempt + 1 if current else 0
                await self._fail_after_last_attempt(run, planned, attempt)
                current = await self._open(run, planned, attempt)
            if current is None:
                return await self._store.skip_round(run.run_id, planned.number)
            # Lines 7-10: the devices train and upload; wait for enough of them, for the last of them, or for
            # the deadline.
            await self._collect(current)
            reported = await self._store.seal_round(current)
            # Line 11: aggregate what was reported, and record it with the checkpoint in one step.
            if len(reported) >= self._needed(run, planned.kind):
                run = await self._working_run()
                outcome = await self._outcome(run, planned, current, reported)
                closed = await self._store.close_round(current, outcome)
                await self._forget(reported)
                return closed
            await self._store.drop_round(current)
            await self._forget(reported)

    async def _working_run(self) -> Run:
        run = await self._store.run(self._run_id)
        if self._stopping or run.state not in WORKING_STATES:
            raise HaltedError
        return run

    async def _enter(self, run: Run, kind: RoundKind) -> Run:
        """The state that belongs to a kind of round; an evaluation has none of its own."""
        states = {RoundKind.WARMUP: RunState.WARMING, RoundKind.TRAIN: RunState.TRAINING}
        state = states.get(kind, run.state)
        return run if run.state is state else await self._store.advance(run.run_id, state)

    @staticmethod
    def _needed(run: Run, kind: RoundKind) -> int:
        """Results without which a round is repeated."""
        return run.config.min_updates if kind in (RoundKind.WARMUP, RoundKind.TRAIN) else 1

    # Selection

    async def _open(self, run: Run, planned: PlannedRound, attempt: int) -> Round | None:
        """Selects devices and records the attempt; None when the round is not held (an evaluation that
        nobody can do)."""
        kind = planned.kind
        if kind is RoundKind.PROFILE:
            await self._wait_for_fleet(run)
        candidates = await self._candidates(run, kind)
        if not candidates:
            return None
        chosen = selection.draw(candidates, kind, run.config, planned.number, attempt)
        window: Window | None = None
        if kind is RoundKind.TRAIN:
            layers = self._manifest.model.num_layers
            window = window_of(planned.rounds_done, run.config.rounds, run.foat_start, run.window_size, layers)
        now = self._clock.now_ms()
        current = Round(
            run_id=run.run_id,
            number=planned.number,
            attempt=attempt,
            kind=kind,
            first_layer=window.first_layer if window else 0,
            window_size=window.size if window else 0,
            wanted=selection.wanted_results(kind, run.config, len(chosen)),
            template=template(run, self._manifest, kind, planned.rounds_done, window),
            opened_ms=now,
            deadline_ms=now + 1000 * run.config.round_deadline_seconds,
        )
        device_ids = [device.device_id for device in chosen]
        await self._store.open_round(current, new_assignments(run, planned.number, attempt, device_ids))
        log.info(
            "round opened",
            extra={"run": run.run_id, "round": planned.number, "kind": str(kind), "devices": len(chosen)},
        )
        return current

    async def _wait_for_fleet(self, run: Run) -> None:
        """Waits until `min_devices` devices with training examples are present and some of them have the
        memory.

        Raises MemoryBudgetError when none has.
        """
        config = run.config
        while True:
            seen = self._store.changes.count("devices")
            await self._working_run()
            present = selection.seen_since(
                await self._store.devices(), self._clock.now_ms() - self._patience.present_ms
            )
            ready = [device for device in present if device.num_train_examples > 0]
            if len(ready) >= config.min_devices:
                choose_window_size(self._manifest, [device.memory_budget_bytes for device in ready], config.window_size)
                return
            missing = config.min_devices - len(ready)
            plural = "s" if missing != 1 else ""
            await self._wait(f"the run waits for {missing} more device{plural} with training examples", "devices", seen)

    async def _candidates(self, run: Run, kind: RoundKind) -> list[Device]:
        """The present devices that can take part, once there are enough of them; for an evaluation that may
        be none."""
        needed = self._needed(run, kind)
        give_up_ms = self._clock.now_ms() + self._patience.return_ms
        last_opened = await self._store.last_opened_ms(run.run_id)
        window_size = run.window_size or run.config.window_size
        while True:
            seen = self._store.changes.count("devices")
            await self._working_run()
            now = self._clock.now_ms()
            able = selection.eligible(await self._store.devices(), self._manifest, kind, window_size)
            present = selection.seen_since(able, now - self._patience.present_ms)
            expected = present
            if last_opened is not None:
                expected = selection.seen_since(able, min(last_opened, now) - self._patience.present_ms)
            absent = len(expected) - len(present)
            patient = now < give_up_ms
            if len(present) >= needed and not (absent > 0 and patient):
                break
            if kind is RoundKind.EVALUATE and not (absent > 0 and patient):
                return []
            missing = max(needed - len(present), absent)
            plural = "s" if missing != 1 else ""
            await self._wait(f"the run waits for {missing} more device{plural} to check in", "devices", seen)
        await self._store.set_reason(run.run_id, "")
        return present

    async def _wait(self, reason: str, key: str, seen: int) -> None:
        await self._store.set_reason(self._run_id, reason)
        await self._store.changes.changed(key, seen, self._patience.poll_seconds)

    # Results

    async def _collect(self, current: Round) -> None:
        """Waits until the wanted results are in, no device is at work any more, or the deadline has
        passed."""
        key = f"run:{current.run_id}"
        while current.state is RoundState.OPEN:
            seen = self._store.changes.count(key)
            await self._working_run()
            progress = await self._store.progress(current)
            if progress.open == 0 or progress.reported >= current.wanted:
                return
            newest = await self._store.latest_attempt(current.run_id, current.number)
            deadline_ms = newest.deadline_ms if newest else current.deadline_ms
            remaining_seconds = (deadline_ms - self._clock.now_ms()) / 1000
            if remaining_seconds <= 0:
                return
            await self._store.changes.changed(key, seen, min(remaining_seconds, 30.0))

    async def _outcome(
        self, run: Run, planned: PlannedRound, current: Round, reported: list[Assignment]
    ) -> RoundOutcome:
        """What the results amount to; computed beside the event loop, one device's result in memory at a
        time."""
        if planned.kind is RoundKind.EVALUATE:
            return outcomes.evaluated(planned.rounds_done, reported)
        if planned.kind is RoundKind.PROFILE:
            budgets = await self._budgets(reported)
            return await asyncio.to_thread(
                outcomes.profiled, run, self._manifest, reported, budgets, self._blobs, self._updates
            )
        done = planned.rounds_done + (1 if planned.kind is RoundKind.TRAIN else 0)
        return await asyncio.to_thread(
            outcomes.trained, run, self._manifest, current, reported, done, self._blobs, self._updates
        )

    async def _budgets(self, reported: list[Assignment]) -> list[int]:
        """Memory budgets (bytes, 0: no limit) of the devices that reported."""
        ids = {assignment.device_id for assignment in reported}
        return [device.memory_budget_bytes for device in await self._store.devices() if device.device_id in ids]

    async def _fail_after_last_attempt(self, run: Run, planned: PlannedRound, attempt: int) -> None:
        """Raises RunFailedError, with the devices' reasons, when every attempt at the round got too few
        results."""
        if attempt:
            log.warning("round repeated", extra={"run": run.run_id, "round": planned.number, "attempt": attempt})
        if attempt >= self._patience.attempts:
            failures = await self._store.failures(run.run_id, planned.number)
            raise RunFailedError(outcomes.explain_failures(planned, self._needed(run, planned.kind), failures))

    async def _forget(self, reported: list[Assignment]) -> None:
        """Single devices' results are deleted once they have been aggregated, or will not be."""
        for assignment in reported:
            await asyncio.to_thread(self._updates.remove, assignment.assignment_id)
