"""One task for each working run: starts it, lets it end, and records why a run could not go on."""

from __future__ import annotations

import asyncio
import logging

from chainfed.coordinator.blobs import FolderBlobs, Updates
from chainfed.coordinator.ports import Clock
from chainfed.coordinator.records import WORKING_STATES, Run, RunState
from chainfed.coordinator.rounds import HaltedError, Patience, RunLoop
from chainfed.coordinator.store import SqlStore
from chainfed.core.errors import ChainFedError, ConflictError
from chainfed.core.manifest import Manifest, parse_manifest

log = logging.getLogger(__name__)


class Runner:
    """Carries out every working run of a coordinator."""

    def __init__(self, store: SqlStore, blobs: FolderBlobs, updates: Updates, clock: Clock, patience: Patience) -> None:
        self._store, self._blobs, self._updates = store, blobs, updates
        self._clock, self._patience = clock, patience
        self._loops: dict[str, RunLoop] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._manifests: dict[str, Manifest] = {}
        self._stopping = False

    def manifest(self, run: Run) -> Manifest:
        """The manifest of a run's bundle. Raises BundleError or NotFoundError when it cannot be read."""
        known = self._manifests.get(run.manifest.sha256)
        if known is None:
            known = parse_manifest(self._blobs.read(run.manifest), f"the manifest of run {run.run_id}")
            self._manifests[run.manifest.sha256] = known
        return known

    async def recover(self) -> None:
        """After a start: deletes files that no open round needs and carries on with every working run."""
        self._updates.sweep(set(await self._store.needed_uploads()))
        for run_id, state, _, _ in await self._store.run_states():
            if state in WORKING_STATES:
                self.carry_on(run_id)

    def carry_on(self, run_id: str) -> None:
        """Sees to it that the working run is carried out."""
        if not self._stopping:
            self._tasks[run_id] = asyncio.create_task(self._carry_out(run_id, self._tasks.get(run_id)))

    async def stop(self, patience_seconds: float = 5.0) -> None:
        """Lets every run end at its next step; a run that takes longer is interrupted, which loses nothing
        either."""
        self._stopping = True
        for loop in self._loops.values():
            loop.stop()
        self._store.changes.notify_all()
        tasks = list(self._tasks.values())
        if tasks:
            _, slow = await asyncio.wait(tasks, timeout=patience_seconds)
            for task in slow:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(self, run_id: str, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        try:
            manifest = self.manifest(await self._store.run(run_id))
            loop = RunLoop(run_id, manifest, self._store, self._blobs, self._updates, self._clock, self._patience)
            self._loops[run_id] = loop
            if self._stopping:
                loop.stop()
            await loop.carry_out()
            log.info("run completed", extra={"run": run_id})
        except HaltedError:
            log.info("run halted", extra={"run": run_id})
        except ConflictError as error:
            log.info("run changed from outside", extra={"run": run_id, "detail": str(error)})
        except ChainFedError as error:
            log.error("run failed", extra={"run": run_id, "reason": str(error)})
            await self._record(run_id, RunState.FAILED, str(error))
        except Exception as error:
            log.exception("run met an unexpected error and is paused", extra={"run": run_id})
            await self._record(
                run_id, RunState.PAUSED, f"{type(error).__name__}: {error}; resume the run once it is mended"
            )
        finally:
            self._loops.pop(run_id, None)

    async def _record(self, run_id: str, state: RunState, reason: str) -> None:
        try:
            if state is RunState.PAUSED:
                await self._store.pause_run(run_id, reason)
            else:
                await self._store.advance(run_id, state, reason)
        except ConflictError:
            log.info("run changed from outside", extra={"run": run_id})
