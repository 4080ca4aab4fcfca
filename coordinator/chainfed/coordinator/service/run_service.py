"""What operators call."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any

import grpc

from chainfed.coordinator.assignments import missing_parts
from chainfed.coordinator.blobs import FolderBlobs
from chainfed.coordinator.configuration import complete
from chainfed.coordinator.ports import Clock
from chainfed.coordinator.records import ENDED_STATES, Blob, Run, RunState
from chainfed.coordinator.runner import Runner
from chainfed.coordinator.service import requests
from chainfed.coordinator.service.errors import Context, answering, streaming
from chainfed.coordinator.service.messages import run_message
from chainfed.coordinator.store import SqlStore
from chainfed.core.errors import BadInputError, BundleError, UnreachableError
from chainfed.core.manifest import ADAPTERS_FILE, Manifest, parse_manifest
from chainfed.core.rpc import CHUNK_BYTES
from chainfed.core.tensors import check_finite, check_shapes, decode, encode, split_pieces
from chainfed.v1 import blob_pb2
from chainfed.v1 import run_service_pb2 as pb
from chainfed.v1 import run_service_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

_MOST_BLOBS = 10_000
_WATCH_SECONDS = 15.0


class RunService(pb_grpc.RunServiceServicer):
    """The servicer behind the protocol's RunService."""

    def __init__(self, store: SqlStore, blobs: FolderBlobs, runner: Runner, clock: Clock) -> None:
        self._store, self._blobs, self._runner, self._clock = store, blobs, runner, clock
        self._stopping = False

    def stop(self) -> None:
        """Ends all watches."""
        self._stopping = True
        self._store.changes.notify_all()

    @answering
    async def FindMissingBlobs(  # noqa: N802
        self, request: pb.FindMissingBlobsRequest, context: Context
    ) -> pb.FindMissingBlobsResponse:
        """Says which blobs are not stored."""
        if len(request.blobs) > _MOST_BLOBS:
            raise BadInputError(f"{len(request.blobs)} blobs are too many; ask for at most {_MOST_BLOBS}.")
        missing = [blob for blob in request.blobs if not self._blobs.has(requests.blob(blob, "blobs"))]
        return pb.FindMissingBlobsResponse(missing=missing)

    @answering
    async def PutBlob(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.PutBlobRequest], context: Context
    ) -> pb.PutBlobResponse:
        """Stores a blob."""
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.HasField("blob"):
            raise BadInputError("A blob's transfer begins with its reference; send the reference first.")
        blob = requests.blob(first.blob, "blob")
        with self._blobs.incoming(blob) as incoming:
            async for piece in request_iterator:
                if not piece.HasField("chunk") or not 1 <= len(piece.chunk) <= CHUNK_BYTES:
                    raise BadInputError(
                        f"After the reference come chunks of 1 to {CHUNK_BYTES} bytes; send nothing else."
                    )
                incoming.write(piece.chunk)
            await asyncio.to_thread(incoming.finish)
        return pb.PutBlobResponse()

    @answering
    async def CreateRun(self, request: pb.CreateRunRequest, context: Context) -> pb.CreateRunResponse:  # noqa: N802
        """Creates a run over a stored bundle."""
        requests.text(request.request_id, "request_id", 1, 64)
        name = requests.text(request.name, "name", 0, 128)
        known = await self._store.run_by_request(request.request_id)
        if known is not None:
            return pb.CreateRunResponse(run=await run_message(known, self._store))
        reference = requests.blob(request.manifest, "manifest")
        manifest = await asyncio.to_thread(self._whole_bundle, reference)
        run = Run(
            run_id=secrets.token_hex(6),
            name=name,
            state=RunState.CREATED,
            config=complete(request.config, manifest),
            manifest=reference,
            pieces=await asyncio.to_thread(self._first_pieces, manifest),
            created_ms=self._clock.now_ms(),
        )
        run = await self._store.create_run(run, request.request_id)
        log.info("run created", extra={"run": run.run_id, "run_name": run.name})
        return pb.CreateRunResponse(run=await run_message(run, self._store))

    def _whole_bundle(self, reference: Blob) -> Manifest:
        """The manifest. Raises BundleError when the bundle lacks a part or a file is not stored."""
        manifest = parse_manifest(self._blobs.read(reference), "the bundle's manifest")
        missing = missing_parts(manifest)
        if missing:
            raise BundleError(f"The bundle's manifest lacks {', '.join(missing[:5])}; export the bundle again.")
        for path, entry in manifest.files.items():
            if not self._blobs.has(Blob(entry.sha256, entry.bytes)):
                raise BundleError(
                    f"The bundle's file {path} has not been uploaded; upload the whole bundle, then create the run."
                )
        if ADAPTERS_FILE not in manifest.files:
            raise BundleError(f"The bundle lacks {ADAPTERS_FILE}; export the bundle again.")
        return manifest

    def _first_pieces(self, manifest: Manifest) -> dict[str, Blob]:
        """The pieces of the bundle's initial model state. Raises BundleError when it is not the
        manifest's."""
        entry = manifest.files[ADAPTERS_FILE]
        state = decode(self._blobs.read(Blob(entry.sha256, entry.bytes)), ADAPTERS_FILE)
        check_shapes(state, manifest.state_shapes(), ADAPTERS_FILE)
        check_finite(state, ADAPTERS_FILE)
        return {piece: self._blobs.put(encode(tensors)) for piece, tensors in split_pieces(state).items()}

    @answering
    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.StartRunResponse:  # noqa: N802
        """Lets a run begin."""
        run = await self._store.start_run(_run_id(request.run_id))
        self._runner.carry_on(run.run_id)
        return pb.StartRunResponse(run=await run_message(run, self._store))

    @answering
    async def PauseRun(self, request: pb.PauseRunRequest, context: Context) -> pb.PauseRunResponse:  # noqa: N802
        """Holds a run."""
        run = await self._store.pause_run(_run_id(request.run_id), "paused by the operator")
        return pb.PauseRunResponse(run=await run_message(run, self._store))

    @answering
    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Context) -> pb.ResumeRunResponse:  # noqa: N802
        """Lets a paused run go on."""
        run = await self._store.resume_run(_run_id(request.run_id))
        self._runner.carry_on(run.run_id)
        return pb.ResumeRunResponse(run=await run_message(run, self._store))

    @answering
    async def CancelRun(self, request: pb.CancelRunRequest, context: Context) -> pb.CancelRunResponse:  # noqa: N802
        """Ends a run."""
        run = await self._store.cancel_run(_run_id(request.run_id))
        return pb.CancelRunResponse(run=await run_message(run, self._store))

    @answering
    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:  # noqa: N802
        """Tells about a run."""
        run = await self._store.run(_run_id(request.run_id))
        return pb.GetRunResponse(run=await run_message(run, self._store))

    @answering
    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:  # noqa: N802
        """Tells about all runs."""
        return pb.ListRunsResponse(runs=[await run_message(run, self._store) for run in await self._store.runs()])

    @streaming
    async def WatchRun(  # noqa: N802
        self, request: pb.WatchRunRequest, context: Context
    ) -> AsyncIterator[pb.WatchRunResponse]:
        """Streams events, those of the past first; ends after the last event of an ended run."""
        run_id = _run_id(request.run_id)
        sequence = requests.at_least(request.from_sequence, 0, "from_sequence")
        while True:
            seen = self._store.changes.count(f"run:{run_id}")
            ended = (await self._store.run(run_id)).state in ENDED_STATES
            events = await self._store.events(run_id, sequence)
            for event in events:
                yield event
                sequence = event.sequence + 1
            if events:
                continue
            if ended:
                return
            if self._stopping:
                raise UnreachableError("The coordinator is stopping; watch again when it is back.")
            await self._store.changes.changed(f"run:{run_id}", seen, _WATCH_SECONDS)

    @streaming
    async def GetCheckpoint(  # noqa: N802
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> AsyncIterator[pb.GetCheckpointResponse]:
        """Streams a checkpoint."""
        rounds_done = request.rounds_done if request.HasField("rounds_done") else None
        blob = await self._store.checkpoint(_run_id(request.run_id), rounds_done)
        reference: blob_pb2.BlobRef | None = blob_pb2.BlobRef(sha256=blob.sha256, size_bytes=blob.size_bytes)
        for chunk in self._blobs.chunks(blob.sha256):
            yield pb.GetCheckpointResponse(data=chunk, checkpoint=reference)
            reference = None


def _run_id(value: str) -> str:
    return requests.hexadecimal(value, 12, "run_id")


def add(service: RunService, server: grpc.aio.Server) -> None:
    """Puts the service on a server."""
    add_to: Any = pb_grpc.add_RunServiceServicer_to_server
    add_to(service, server)
