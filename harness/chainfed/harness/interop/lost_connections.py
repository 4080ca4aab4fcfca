"""Cases in which connections, answers or the coordinator go away."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from chainfed.core.errors import NotFoundError
from chainfed.core.rpc import CHUNK_BYTES
from chainfed.core.tensors import sha256_hex
from chainfed.harness.interop.case import Case, Stand, require_bytes
from chainfed.harness.interop.ground import CREATED, difference
from chainfed.harness.interop.proxy import LostConnection, Meddler
from chainfed.harness.interop.traffic import Call
from chainfed.harness.interop.trial import NotSetUp, Trial, require
from chainfed.v1 import device_service_pb2 as pb
from chainfed.v1 import run_service_pb2 as run_pb

_SETTLE_SECONDS = 0.3


class _CutDownloads(Meddler):
    """Loses the connection within pieces of some blobs. cuts: (the call, bytes of the blob sent before that piece)."""

    def __init__(self, positions: dict[str, list[int]]) -> None:
        self._positions = positions
        self.cuts: list[tuple[Call, int]] = []

    async def piece(self, call: Call, position: int, data: bytes) -> bytes:
        waiting = self._positions.get(call.request.sha256, [])
        if waiting and position >= waiting[0]:
            waiting.pop(0)
            await asyncio.sleep(_SETTLE_SECONDS)  # so that the device can take what it was sent
            self.cuts.append((call, position))
            self.proxy.relay.cut_after(len(data) // 2)
        return data


class DropMidDownload(Case):
    """See `sentence`."""

    name = "DROP_MID_DOWNLOAD"
    sentence = "The connection is lost in the middle of blobs: the device goes on at the byte where it stopped."

    def run(self, stand: Stand) -> list[str]:
        """Cuts the largest file twice and another one once."""
        files = sorted(stand.ground.first.assignment.files, key=lambda file: (-file.blob.size_bytes, file.name))
        sizes = {file.blob.sha256: file.blob.size_bytes for file in files[:2]}
        (first, size), (second, other_size) = sizes.items()
        meddler = _CutDownloads({first: [size // 2, size * 4 // 5], second: [other_size * 3 // 5]})
        with stand.trial(meddler) as trial:
            trial.start_device()
            header = trial.update(trial.assignment(stand.ground.first.assignment.round))
            if len(meddler.cuts) < 3:
                raise NotSetUp(f"{len(meddler.cuts)} of 3 connections were cut")
            again = sum(_fetched_again(trial, call, position) for call, position in meddler.cuts)
            for sha256, total in sizes.items():
                passed = sum(call.num_bytes for call in trial.traffic.fetches(sha256))
                cuts = sum(call.request.sha256 == sha256 for call, _ in meddler.cuts)
                most = total + cuts * CHUNK_BYTES
                require(passed <= most, f"at most {most} bytes to be fetched of {total}", f"{passed} bytes")
            same = require_bytes(trial, header, stand.ground.first)
        return [f"3 cuts: {again} bytes fetched twice", same]


def _fetched_again(trial: Trial, cut: Call, position: int) -> int:
    """Bytes that were sent before a cut and asked for again after it."""
    fetches = trial.traffic.fetches(cut.request.sha256)
    later = fetches[_index(fetches, cut) + 1 :]
    require(bool(later), "the device to ask for the rest of a blob after a lost connection", "it never did")
    offset = int(later[0].request.offset)
    require(
        position - CHUNK_BYTES <= offset <= position,
        f"the download to go on at {position - CHUNK_BYTES} to {position}, after {position} bytes had come",
        f"FetchBlob with offset {offset}",
    )
    return max(position - offset, 0)


def _index(calls: list[Call], wanted: Call) -> int:
    return next(number for number, call in enumerate(calls) if call is wanted)


class _CutUploads(Meddler):
    """Loses the connection when the coordinator has stored the update up to certain bytes."""

    def __init__(self, positions: list[int]) -> None:
        self._positions = positions
        self.cuts: list[int] = []

    async def chunk(self, call: Call, position: int) -> None:
        if self._positions and position >= self._positions[0]:
            self._positions.pop(0)
            await wait_until_stored(self, call, position)
            self.cuts.append(len(self.proxy.traffic.calls))
            raise LostConnection


async def wait_until_stored(meddler: Meddler, call: Call, position: int) -> None:
    """Waits until the coordinator has stored an update up to `position`."""
    header = call.request
    query = pb.QueryUploadRequest(
        device_id=header.device_id, assignment_id=header.assignment_id, sha256=header.update.sha256
    )
    while (await meddler.proxy.ask("QueryUpload", query)).received_bytes < position:
        await asyncio.sleep(0.01)


class DropMidUpload(Case):
    """See `sentence`."""

    name = "DROP_MID_UPLOAD"
    sentence = "The connection is lost in the middle of an update: the device asks how much arrived and sends the rest."

    def run(self, stand: Stand) -> list[str]:
        """Cuts the update after a quarter and after a half of it."""
        expected = stand.ground.first
        meddler = _CutUploads([expected.size_bytes // 4, expected.size_bytes // 2])
        with stand.trial(meddler) as trial:
            trial.start_device()
            assignment = trial.assignment(expected.assignment.round)
            header = trial.update(assignment)
            if len(meddler.cuts) < 2:
                raise NotSetUp(f"{len(meddler.cuts)} of 2 connections were cut; the update came in too few chunks")
            for cut in meddler.cuts:
                _require_resumption(trial, assignment, cut)
            last = trial.traffic.of("SubmitUpdate")[-1]
            require(
                last.request.offset + last.num_bytes == expected.size_bytes,
                f"the last upload to end at byte {expected.size_bytes}",
                f"{last.num_bytes} bytes from {last.request.offset} on",
            )
            same = require_bytes(trial, header, expected)
        return ["2 cuts: QueryUpload each time, then no byte sent twice", same]


def _require_resumption(trial: Trial, assignment: pb.Assignment, since: int) -> None:
    calls = trial.traffic.about(assignment.assignment_id, since)
    queries = [call for call in calls if call.method == "QueryUpload" and call.ending == "answered"]
    submissions = [call for call in calls if call.method == "SubmitUpdate"]
    seen = ", ".join(call.method for call in calls)
    require(
        bool(queries and submissions) and _index(calls, queries[0]) < _index(calls, submissions[0]),
        "QueryUpload and then SubmitUpdate after a lost connection",
        seen or "neither",
    )
    received = queries[0].answer.received_bytes
    require(
        submissions[0].request.offset == received > 0,
        f"the upload to go on at byte {received}, as QueryUpload said",
        f"SubmitUpdate with offset {submissions[0].request.offset}",
    )


class _CloseRounds(Meddler):
    """Closes an assignment behind the device's back when it begins to hand in.

    The first time the coordinator says that the update does not count; the second time the assignment is unknown.
    """

    def __init__(self) -> None:
        self._closed: list[str] = []

    async def request(self, call: Call) -> None:
        if call.method not in ("QueryUpload", "SubmitUpdate"):
            return
        assignment_id = call.request.assignment_id
        if assignment_id not in self._closed and len(self._closed) < 2:
            self._closed.append(assignment_id)
            detail = "chainfed interop closed the round"
            await self.proxy.ask(
                "Abandon",
                pb.AbandonRequest(
                    device_id=call.request.device_id,
                    assignment_id=assignment_id,
                    reason=pb.ABANDON_REASON_INTERNAL,
                    detail=detail,
                ),
            )
        if assignment_id in self._closed[1:]:
            raise NotFoundError(f"Assignment {assignment_id} does not exist; check in for a new one.")


class StaleRound(Case):
    """See `sentence`."""

    name = "STALE_ROUND"
    sentence = "The round closes before the result arrives: the device leaves it at that and does the next assignment."

    def run(self, stand: Stand) -> list[str]:
        """Closes two attempts at a round before the device hands in; the third one counts."""
        expected = stand.ground.first
        with stand.trial(_CloseRounds()) as trial:
            trial.start_device()
            late, gone, last = (trial.assignment(expected.assignment.round, attempt) for attempt in range(3))
            header = trial.update(last)
            answers = [call for call in trial.traffic.about(late.assignment_id) if call.method == "SubmitUpdate"]
            require(
                len(answers) == 1 and answers[0].ending == "answered" and not answers[0].answer.counted,
                "one SubmitUpdate, answered with counted = false",
                f"{len(answers)} of them: {', '.join(call.ending for call in answers)}",
            )
            calls = trial.traffic.about(gone.assignment_id)
            require(
                len(calls) == 1 and calls[0].ending == "refused",
                "an assignment that does not exist any more not to be handed in again",
                f"{len(calls)} calls: {', '.join(call.method for call in calls)}",
            )
            same = require_bytes(trial, header, expected)
        return ["counted = false, then NOT_FOUND: each taken once", f"next assignment's {same}"]


class _LoseAnswer(Meddler):
    """Loses the first answer to SubmitUpdate. lost_at: how many calls there had been."""

    def __init__(self) -> None:
        self.lost_at = 0

    async def answer(self, call: Call, message: Any) -> Any:
        if call.method == "SubmitUpdate" and not self.lost_at:
            self.lost_at = len(self.proxy.traffic.calls)
            raise LostConnection
        return message


class DuplicateSubmit(Case):
    """See `sentence`."""

    name = "DUPLICATE_SUBMIT"
    sentence = "The update is accepted, but the answer is lost: the device asks again, and the update counts once."

    def run(self, stand: Stand) -> list[str]:
        """Loses the answer, then looks at what counts in the run."""
        expected, run_id = stand.ground.first, stand.ground.run_id
        meddler = _LoseAnswer()
        with stand.trial(meddler) as trial:
            trial.start_device()
            assignment = trial.assignment(expected.assignment.round)
            header = trial.update(assignment)
            if not meddler.lost_at:
                raise NotSetUp("no answer was lost")
            trial.assignment(stand.ground.last.assignment.round)
            sent_again = sum(call.num_bytes for call in trial.traffic.about(assignment.assignment_id, meddler.lost_at))
            require(sent_again == 0, "nothing of an accepted update to be sent again", f"{sent_again} bytes")
            closed = _closed(trial, run_id, assignment.round)
            require(
                (closed.round.num_reported, closed.bytes_up) == (1, expected.size_bytes),
                f"a round with one update of {expected.size_bytes} bytes",
                f"{closed.round.num_reported} updates, {closed.bytes_up} bytes",
            )
            checkpoint = trial.operator.checkpoint(run_id, 1)
            same = require_bytes(trial, header, expected)
            require_checkpoint(checkpoint, stand.ground.checkpoints[1])
        return ["counted once, nothing sent again", same, "checkpoint: same bytes"]


def _closed(trial: Trial, run_id: str, round_number: int) -> run_pb.RoundClosed:
    """The end of a round."""
    return next(
        event.round_closed
        for event in trial.operator.watch(run_id)
        if event.HasField("round_closed") and event.round_closed.round.number == round_number
    )


def require_checkpoint(found: bytes, expected: bytes) -> None:
    """Raises CaseFailed when a checkpoint is not that of the undisturbed run."""
    if found != expected:
        require(
            False,
            f"the checkpoint of an undisturbed Python device, SHA-256 {sha256_hex(expected)[:16]}",
            difference(found, expected),
        )


class _KillWithinTransfers(Meddler):
    """Asks for the coordinator's end in the middle of a download and of an upload, and waits for it."""

    def __init__(self, download_from: int) -> None:
        self._download_from = download_from
        self._seen: set[str] = set()
        self.wanted = threading.Event()
        self.done = threading.Event()

    async def piece(self, call: Call, position: int, data: bytes) -> bytes:
        if position >= self._download_from:
            await self._strike("download")
        return data

    async def chunk(self, call: Call, position: int) -> None:
        if call.request.update.size_bytes > CHUNK_BYTES and 2 * position >= call.request.update.size_bytes:
            await wait_until_stored(self, call, position)
            await self._strike("upload")

    async def _strike(self, where: str) -> None:
        if where in self._seen:
            return
        self._seen.add(where)
        self.done.clear()
        self.wanted.set()
        while not self.done.is_set():
            await asyncio.sleep(0.01)
        raise LostConnection


def _is_at_work(trial: Trial, assignment: pb.Assignment) -> bool:
    journal = trial.journal(assignment)
    return bool(journal.passes or journal.steps or assignment.assignment_id in trial.journals)


class CoordinatorRestart(Case):
    """See `sentence`."""

    name = "COORDINATOR_RESTART"
    sentence = "The coordinator is killed during a download, while the device computes, and during an upload."

    def run(self, stand: Stand) -> list[str]:
        """A whole run, from the first contact to the last round."""
        ground = stand.ground
        meddler = _KillWithinTransfers(CHUNK_BYTES)
        with stand.trial(meddler, CREATED) as trial:
            trial.operator.start(ground.run_id)
            trial.start_device()
            for _ in range(2):
                trial.until(meddler.wanted.is_set, "the device to transfer a blob and an update of several chunks")
                trial.restart_coordinator()
                meddler.wanted.clear()
                meddler.done.set()
            assignment = trial.assignment(ground.last.assignment.round)
            trial.until(lambda: _is_at_work(trial, assignment), "the device to work on the last round")
            if assignment.assignment_id in trial.journals:
                raise NotSetUp("the device had computed the last round before the coordinator could be killed")
            trial.restart_coordinator()
            code = trial.exit_code("the device to end after the run")
            require(code == 0, "exit code 0 after the run", f"exit code {code}: {trial.last_words}")
            run = trial.operator.get(ground.run_id)
            require(run.state == run_pb.RUN_STATE_COMPLETED, "a run that is completed", run_pb.RunState.Name(run.state))
            for update in ground.updates.values():
                header = trial.update(trial.assignment(update.assignment.round), alive=False)
                require_bytes(trial, header, update)
            require_checkpoint(trial.operator.checkpoint(ground.run_id), ground.checkpoints[max(ground.checkpoints)])
        return ["3 restarts", f"{len(ground.updates)} updates: same bytes", "final checkpoint: same bytes"]
