"""What devices call."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from chainfed.coordinator.aggregation import checked_tensors, largest_encoding
from chainfed.coordinator.assignments import update_shapes
from chainfed.coordinator.blobs import FolderBlobs, Updates
from chainfed.coordinator.enrolment_tokens import LONGEST_TOKEN, EnrolmentTokens
from chainfed.coordinator.foat import profile_shapes
from chainfed.coordinator.records import (
    ENDED_STATES,
    Assignment,
    AssignmentState,
    Blob,
    ProfileReport,
    Report,
    Round,
    RoundKind,
    Run,
    UpdateReport,
)
from chainfed.coordinator.runner import Runner
from chainfed.coordinator.service import requests
from chainfed.coordinator.service.errors import Context, answering, streaming
from chainfed.coordinator.service.messages import assignment_message
from chainfed.coordinator.store import SqlStore
from chainfed.core.errors import BadInputError, ConflictError, UnauthorizedError, UpdateRejectedError
from chainfed.core.manifest import Manifest
from chainfed.core.rpc import CHUNK_BYTES
from chainfed.core.signing import PublicKey, evaluation_text, profile_text, update_text
from chainfed.core.tensors import sha256_hex
from chainfed.v1 import device_service_pb2 as pb
from chainfed.v1 import device_service_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

HOLD_SECONDS = 10.0
MOST_HELD = 4096
RETRY_AFTER_HOLD_MS = 200
RETRY_MS = 5_000


class DeviceService(pb_grpc.DeviceServiceServicer):
    """The servicer behind the protocol's DeviceService.

    A check-in that finds no work is held for up to ten seconds, so that a device hears of its assignment at
    once; how many are held is bounded. `tokens` are what new devices are admitted with; None: they need none.
    """

    def __init__(
        self,
        store: SqlStore,
        blobs: FolderBlobs,
        updates: Updates,
        runner: Runner,
        tokens: EnrolmentTokens | None = None,
    ) -> None:
        self._store, self._blobs, self._updates, self._runner = store, blobs, updates, runner
        self._tokens = tokens
        self._held = 0
        self._known: set[str] = set()
        self._sent: Counter[str] = Counter()
        self._stopping = False

    def stop(self) -> None:
        """Answers all check-ins that are held."""
        self._stopping = True
        self._store.changes.notify_all()

    @answering
    async def Enrol(self, request: pb.EnrolRequest, context: Context) -> pb.EnrolResponse:  # noqa: N802
        """Makes a device known."""
        key = requests.text(request.device_key, "device_key", 1, 128, printable_ascii=True)
        model = requests.text(request.model, "model", 0, 128)
        version = requests.at_least(request.bundle_format_version, 1, "bundle_format_version")
        token = requests.text(request.enrolment_token, "enrolment_token", 0, LONGEST_TOKEN)
        public_key = request.public_key or None
        if public_key is not None:
            PublicKey(public_key)
        admitted = self._tokens is None or self._tokens.admits(token)
        return pb.EnrolResponse(device_id=await self._store.enrol(key, model, version, public_key, admitted))

    @answering
    async def CheckIn(self, request: pb.CheckInRequest, context: Context) -> pb.CheckInResponse:  # noqa: N802
        """Gives a device work, the same until it is done; otherwise waits a while for some."""
        device_id = requests.hexadecimal(request.device_id, 16, "device_id")
        budget = requests.at_least(request.memory_budget_bytes, 0, "memory_budget_bytes")
        num_train = requests.at_least(request.num_train_examples, 0, "num_train_examples")
        num_test = requests.at_least(request.num_test_examples, 0, "num_test_examples")
        await self._store.check_in(device_id, budget, num_train, num_test)
        clock = asyncio.get_running_loop().time
        until = clock() + self._hold_seconds(context)
        self._held += 1
        try:
            while True:
                seen = self._store.changes.count(f"device:{device_id}")
                answer = await self._answer(device_id)
                remaining = until - clock()
                if not answer.HasField("wait") or remaining <= 0 or self._stopping:
                    return answer
                await self._store.changes.changed(f"device:{device_id}", seen, remaining)
        finally:
            self._held -= 1

    def _hold_seconds(self, context: Context) -> float:
        """How long a check-in may be held: well within the caller's deadline."""
        remaining = context.time_remaining()
        if self._held >= MOST_HELD:
            return 0.0
        return HOLD_SECONDS if remaining is None else max(min(HOLD_SECONDS, 0.8 * remaining - 0.5), 0.0)

    async def _answer(self, device_id: str) -> pb.CheckInResponse:
        found = await self._store.next_assignment(device_id)
        if found is not None:
            return pb.CheckInResponse(assignment=assignment_message(*found))
        states = await self._store.run_states()
        going_on = [(state, reason) for _, state, reason, _ in states if state not in ENDED_STATES]
        if not going_on:
            enrolled_ms = (await self._store.device(device_id)).enrolled_ms
            if any(ended_ms >= enrolled_ms for _, _, _, ended_ms in states):
                return pb.CheckInResponse(finished=pb.Finished(reason="every run has ended"))
        reason = "there is no run yet"
        if going_on:
            state, why = going_on[0]
            reason = why or f"the run is {state}, and this device has no part in its present round"
        retry_ms = RETRY_AFTER_HOLD_MS if self._held < MOST_HELD else RETRY_MS
        return pb.CheckInResponse(wait=pb.Wait(retry_after_ms=retry_ms, reason=reason))

    @streaming
    async def FetchBlob(  # noqa: N802
        self, request: pb.FetchBlobRequest, context: Context
    ) -> AsyncIterator[pb.FetchBlobResponse]:
        """Streams a blob from an offset. What was sent is counted in memory until the device hands in its
        work."""
        device_id = requests.hexadecimal(request.device_id, 16, "device_id")
        requests.hexadecimal(request.sha256, 64, "sha256")
        if device_id not in self._known:
            await self._store.device(device_id)
            self._known.add(device_id)
        empty = True
        for chunk in self._blobs.chunks(request.sha256, request.offset):
            self._sent[device_id] += len(chunk)
            empty = False
            yield pb.FetchBlobResponse(data=chunk)
        if empty:
            yield pb.FetchBlobResponse()

    @answering
    async def SubmitProfile(  # noqa: N802
        self, request: pb.SubmitProfileRequest, context: Context
    ) -> pb.SubmitProfileResponse:
        """Takes FOAT scores and statistics."""
        assignment, current, run = await self._assignment(request.device_id, request.assignment_id)
        _require_task(current, "a profile", RoundKind.PROFILE)
        await self._require_signature(assignment, request.signature, lambda: _profile_text(request))
        if assignment.state is AssignmentState.OPEN:
            manifest = self._runner.manifest(run)
            try:
                report = await asyncio.to_thread(self._checked_profile, request, manifest)
            except UpdateRejectedError as error:
                await self._refuse(assignment, error)
                raise
            await self._count(assignment, report, len(request.statistics))
        return pb.SubmitProfileResponse()

    def _checked_profile(self, request: pb.SubmitProfileRequest, manifest: Manifest) -> ProfileReport:
        layers = manifest.model.num_layers
        if request.num_examples < 2:
            raise UpdateRejectedError(
                f"A profile of {request.num_examples} examples does not count; 2 or more are needed."
            )
        scores = requests.scores(list(request.scores), layers)
        checked_tensors(request.statistics, profile_shapes(manifest), "the profile")
        return ProfileReport(
            request.num_examples, scores, self._updates.store(request.assignment_id, request.statistics)
        )

    @answering
    async def SubmitEvaluation(  # noqa: N802
        self, request: pb.SubmitEvaluationRequest, context: Context
    ) -> pb.SubmitEvaluationResponse:
        """Takes counts of held-out examples."""
        assignment, current, _ = await self._assignment(request.device_id, request.assignment_id)
        _require_task(current, "an evaluation", RoundKind.EVALUATE)
        counts = (request.num_examples, request.num_correct, request.loss_sum)
        await self._require_signature(
            assignment, request.signature, lambda: evaluation_text(assignment.assignment_id, *counts)
        )
        if assignment.state is AssignmentState.OPEN:
            try:
                report = requests.evaluation(request)
            except UpdateRejectedError as error:
                await self._refuse(assignment, error)
                raise
            await self._count(assignment, report, 0)
        return pb.SubmitEvaluationResponse()

    @answering
    async def QueryUpload(  # noqa: N802
        self, request: pb.QueryUploadRequest, context: Context
    ) -> pb.QueryUploadResponse:
        """Says how far an upload is."""
        requests.hexadecimal(request.sha256, 64, "sha256")
        assignment, current, _ = await self._assignment(request.device_id, request.assignment_id)
        _require_task(current, "an update", RoundKind.WARMUP, RoundKind.TRAIN)
        if isinstance(assignment.report, UpdateReport):
            return pb.QueryUploadResponse(received_bytes=assignment.report.update.size_bytes, accepted=True)
        received = self._updates.received(assignment.assignment_id, request.sha256)
        return pb.QueryUploadResponse(received_bytes=received)

    @answering
    async def SubmitUpdate(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.SubmitUpdateRequest], context: Context
    ) -> pb.SubmitUpdateResponse:
        """Takes an update in pieces. It counts once it is whole, its hash is right and it is what the task
        asked for."""
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("header"):
            raise BadInputError("A submission of an update begins with its header; send the header first.")
        header = first.header
        update = requests.blob(header.update, "update")
        assignment, current, run = await self._assignment(header.device_id, header.assignment_id)
        _require_task(current, "an update", RoundKind.WARMUP, RoundKind.TRAIN)
        signed = (assignment.assignment_id, update.sha256, header.metrics.num_examples)
        await self._require_signature(assignment, header.signature, lambda: update_text(*signed))
        if assignment.state is not AssignmentState.OPEN:
            return pb.SubmitUpdateResponse(counted=assignment.state is AssignmentState.REPORTED)
        requests.at_least(header.offset, 0, "offset")
        try:
            shapes = update_shapes(pb.Assignment.FromString(current.template), self._runner.manifest(run))
            if update.size_bytes > largest_encoding(shapes):
                raise UpdateRejectedError(
                    f"The update was said to have {update.size_bytes} bytes, but this task's has at most "
                    f"{largest_encoding(shapes)}; it does not count."
                )
            report = UpdateReport(update, requests.metrics(header.metrics))
            if not self._updates.is_whole(assignment.assignment_id, update):
                await self._receive(assignment, update, header.offset, request_iterator)
            await asyncio.to_thread(self._check_update, assignment, update, shapes, run)
        except UpdateRejectedError as error:
            await self._refuse(assignment, error)
            raise
        counted = await self._count(assignment, report, update.size_bytes)
        if not counted:
            self._updates.remove(assignment.assignment_id)
        return pb.SubmitUpdateResponse(counted=counted)

    async def _receive(
        self, assignment: Assignment, update: Blob, offset: int, pieces: AsyncIterator[pb.SubmitUpdateRequest]
    ) -> None:
        """Appends the pieces to the update's file; what arrived before a broken connection stays there."""
        with self._updates.writer(assignment.assignment_id, update, offset) as writer:
            async for piece in pieces:
                if not piece.HasField("chunk") or not 1 <= len(piece.chunk) <= CHUNK_BYTES:
                    raise BadInputError(f"After the header come chunks of 1 to {CHUNK_BYTES} bytes; send nothing else.")
                writer.write(piece.chunk)
            if not writer.complete:
                raise ConflictError("The upload ended before all bytes had come; ask with QueryUpload where to go on.")
            try:
                await asyncio.to_thread(writer.verify)
            except UpdateRejectedError:
                writer.require_current()
                raise
            writer.publish()

    def _check_update(self, assignment: Assignment, update: Blob, shapes: dict[str, tuple[int, ...]], run: Run) -> None:
        data = self._updates.read(assignment.assignment_id, update)
        checked_tensors(data, shapes, "the update", run.config.max_update_norm)

    @answering
    async def Abandon(self, request: pb.AbandonRequest, context: Context) -> pb.AbandonResponse:  # noqa: N802
        """Takes an assignment back."""
        detail = requests.text(request.detail, "detail", 0, 1024)
        if request.reason == pb.ABANDON_REASON_UNSPECIFIED or request.reason not in pb.AbandonReason.values():
            raise BadInputError(f"reason is {request.reason}, but must be one of the protocol's reasons.")
        assignment, _, _ = await self._assignment(request.device_id, request.assignment_id)
        closed = await self._store.fail_assignment(
            assignment.assignment_id, assignment.device_id, AssignmentState.ABANDONED, request.reason, detail
        )
        if closed:
            self._updates.remove(assignment.assignment_id)
        return pb.AbandonResponse()

    async def _assignment(self, device_id: str, assignment_id: str) -> tuple[Assignment, Round, Run]:
        requests.hexadecimal(device_id, 16, "device_id")
        requests.hexadecimal(assignment_id, 32, "assignment_id")
        assignment, current, run = await self._store.assignment(assignment_id, device_id)
        if sent := self._sent.pop(device_id, 0):
            await self._store.add_bytes_down(current, sent)
        return assignment, current, run

    async def _require_signature(self, assignment: Assignment, signature: bytes, text: Callable[[], str]) -> None:
        """Raises UnauthorizedError unless the assignment's device signed the text, if it enrolled with a key.

        Nothing else happens then: whoever sent this need not be the device, whose work goes on.
        """
        public_key = (await self._store.device(assignment.device_id)).public_key
        if public_key is None or await asyncio.to_thread(_verifies, public_key, signature, text):
            return
        log.warning("signature refused", extra={"device": assignment.device_id, "run": assignment.run_id})
        raise UnauthorizedError(
            f"The signature on this result of assignment {assignment.assignment_id} is "
            f"{'not that of device ' + assignment.device_id if signature else 'missing'}; sign it with the key that "
            "the device enrolled with."
        )

    async def _count(self, assignment: Assignment, report: Report, bytes_up: int) -> bool:
        return await self._store.report(assignment.assignment_id, assignment.device_id, report, bytes_up)

    async def _refuse(self, assignment: Assignment, error: UpdateRejectedError) -> None:
        """Closes the assignment: a device that sent nonsense once would send it again."""
        log.warning("result refused", extra={"device": assignment.device_id, "detail": str(error)})
        await self._store.fail_assignment(
            assignment.assignment_id, assignment.device_id, AssignmentState.REFUSED, 0, f"refused: {error}"
        )
        self._updates.remove(assignment.assignment_id)


def _verifies(public_key: bytes, signature: bytes, text: Callable[[], str]) -> bool:
    return PublicKey(public_key).verifies(signature, text())


def _profile_text(request: pb.SubmitProfileRequest) -> str:
    return profile_text(
        request.assignment_id, sha256_hex(request.statistics), request.num_examples, list(request.scores)
    )


def _require_task(current: Round, what: str, *kinds: RoundKind) -> None:
    """Raises BadInputError when a result is of another kind than the assignment's task."""
    if current.kind not in kinds:
        raise BadInputError(f"The assignment's task is {current.kind}, but {what} was handed in.")


def add(service: DeviceService, server: grpc.aio.Server) -> None:
    """Puts the service on a server."""
    add_to: Any = pb_grpc.add_DeviceServiceServicer_to_server
    add_to(service, server)
