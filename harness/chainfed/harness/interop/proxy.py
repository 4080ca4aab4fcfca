"""A proxy for the DeviceService that passes every call on, notes it, and lets a case meddle with it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from chainfed.core.errors import METADATA_KEY, ChainFedError
from chainfed.core.rpc import CHANNEL_OPTIONS, SERVER_OPTIONS, RpcFailure
from chainfed.harness.interop.relay import Relay
from chainfed.harness.interop.traffic import Call, Traffic
from chainfed.v1 import device_service_pb2 as pb
from chainfed.v1 import device_service_pb2_grpc as pb_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["DeviceService"]
PIECE_BYTES = 32_768
"""A blob goes to the device in pieces of this size, so that a lost connection loses little of what was sent."""

_RECONNECT_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))


class LostConnection(Exception):  # noqa: N818 - it is no error: the case asked for it.
    """Raised by a meddler: the device's connections are lost at this moment."""


class Meddler:
    """What a case does to the calls that pass. This one lets them pass.

    Each method may raise LostConnection, or a ChainFedError with which the call is refused. `proxy` is set before the
    first call.
    """

    proxy: Proxy

    async def request(self, call: Call) -> None:
        """Before a call is passed on; `call.request` may be changed."""

    async def answer(self, call: Call, message: Any) -> Any:
        """The answer that the device gets instead of `message`."""
        return message

    async def blob(self, call: Call) -> bytes | None:
        """The bytes of a blob that the coordinator is not to be asked for."""
        return None

    async def piece(self, call: Call, position: int, data: bytes) -> bytes:
        """The piece of a blob that the device gets instead of `data`, which begins at `position` of the blob."""
        return data

    async def chunk(self, call: Call, position: int) -> None:
        """After the update up to `position` was passed on."""


class Proxy:
    """Listens on a loopback port (`address`) for one device; a context manager with a thread of its own."""

    def __init__(self, coordinator: str, meddler: Meddler, on_call: Callable[[Call], None] = lambda call: None) -> None:
        """coordinator: HOST:PORT. on_call: hears of every call before it is passed on; from the proxy's thread."""
        self.traffic = Traffic()
        self.address = ""
        self._coordinator, self._meddler, self._on_call = coordinator, meddler, on_call
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, name="interop proxy", daemon=True)
        meddler.proxy = self

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def relay(self) -> Relay:
        """The connections of the device; for use in the proxy's thread."""
        return self._relay

    async def ask(self, method: str, request: Any) -> Any:
        """Asks the coordinator something by itself; for use by a meddler."""
        return await self._upstream[method](request, timeout=30)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(options=SERVER_OPTIONS)
        handlers = {method.name: self._handler(method) for method in SERVICE.methods}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        self._relay = Relay(port)
        async with grpc.aio.insecure_channel(
            self._coordinator, options=CHANNEL_OPTIONS + _RECONNECT_OPTIONS
        ) as channel:
            passed = [method for method in SERVICE.methods if not method.client_streaming]
            self._upstream = {method.name: _upstream(channel, method) for method in passed}
            await server.start()
            self.address = f"127.0.0.1:{await self._relay.start()}"
            self._started.set()
            await self._stop.wait()
            await self._relay.stop()
            await server.stop(None)

    def _handler(self, method: MethodDescriptor) -> Any:
        request, answer = _classes(method)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._download, request.FromString, answer.SerializeToString)
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(self._upload, request.FromString, answer.SerializeToString)

        async def pass_on(message: Any, context: Any) -> Any:
            return await self._unary(method.name, message, context)

        return grpc.unary_unary_rpc_method_handler(pass_on, request.FromString, answer.SerializeToString)

    def _begin(self, method: str, request: Any) -> Call:
        call = Call(method, request)
        self.traffic.calls.append(call)
        self._on_call(call)
        return call

    async def _unary(self, method: str, message: Any, context: Any) -> Any:
        call = self._begin(method, message)
        with _noting_the_end(call):
            try:
                await self._meddler.request(call)
                found = await self._upstream[method](call.request, timeout=context.time_remaining())
                found = await self._meddler.answer(call, found)
            except Exception as error:
                return await self._end(call, error, context)
            call.answer, call.ending = found, "answered"
        return found

    async def _download(self, message: pb.FetchBlobRequest, context: Any) -> None:
        call = self._begin("FetchBlob", message)
        with _noting_the_end(call):
            try:
                await self._meddler.request(call)
                async for data in self._pieces(call, context):
                    position = message.offset + call.num_bytes
                    call.answer = pb.FetchBlobResponse(data=await self._meddler.piece(call, position, data))
                    call.num_bytes += len(data)
                    await context.write(call.answer)
            except grpc.aio.InternalError:
                return  # the device is gone
            except Exception as error:
                await self._end(call, error, context)
            else:
                call.ending = "answered"

    async def _pieces(self, call: Call, context: Any) -> AsyncIterator[bytes]:
        own = await self._meddler.blob(call)
        if own is not None:
            yield own[call.request.offset :]
            return
        async for piece in self._upstream["FetchBlob"](call.request, timeout=context.time_remaining()):
            for start in range(0, max(len(piece.data), 1), PIECE_BYTES):
                yield piece.data[start : start + PIECE_BYTES]

    async def _upload(self, messages: AsyncIterator[pb.SubmitUpdateRequest], context: Any) -> Any:
        first = await anext(aiter(messages), pb.SubmitUpdateRequest())
        call = self._begin("SubmitUpdate", first.header)
        with _noting_the_end(call):
            try:
                await self._meddler.request(call)
                with _Upload(self._coordinator, call, context.time_remaining()) as upload:
                    async for message in messages:
                        if upload.answer.done():
                            break  # the coordinator need not hear all of it
                        call.num_bytes += len(message.chunk)
                        upload.send(message)
                        await self._meddler.chunk(call, call.request.offset + call.num_bytes)
                    upload.finish()
                    found = await self._meddler.answer(call, await upload.answer)
            except Exception as error:
                return await self._end(call, error, context)
            call.answer, call.ending = found, "answered"
        return found

    async def _end(self, call: Call, error: Exception, context: Any) -> Any:
        """Ends a call without an answer: refused as the coordinator or the meddler did, or lost."""
        if isinstance(error, ChainFedError):
            call.ending = "refused"
            context.set_trailing_metadata(((METADATA_KEY, error.code),))
            await context.abort(getattr(grpc.StatusCode, error.grpc_status), str(error))
        if isinstance(error, RpcFailure) and _is_answer(error):
            call.ending = "refused"
            context.set_trailing_metadata(tuple(error.trailing_metadata() or ()))
            await context.abort(error.code(), error.details() or "")
        call.ending = "lost"
        if not isinstance(error, RpcFailure | LostConnection):
            raise error
        self._relay.cut()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was lost")


class _Upload:
    """An update on its way to the coordinator; a context manager that gives it up when it is left.

    It does not use grpc.aio, whose clients may lose an answer that comes before they have sent everything.
    """

    def __init__(self, coordinator: str, call: Call, timeout: float | None) -> None:
        self._messages: queue.SimpleQueue[pb.SubmitUpdateRequest | None] = queue.SimpleQueue()
        self._channel = grpc.insecure_channel(coordinator, options=CHANNEL_OPTIONS)
        self.send(pb.SubmitUpdateRequest(header=call.request))
        stub: Any = pb_grpc.DeviceServiceStub(self._channel).SubmitUpdate
        self._call = stub.future(iter(self._messages.get, None), timeout=timeout)
        self.answer = asyncio.ensure_future(asyncio.to_thread(self._call.result))

    def __enter__(self) -> _Upload:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish()
        self._call.cancel()
        self.answer.add_done_callback(_hear)
        self._channel.close()

    def send(self, message: pb.SubmitUpdateRequest) -> None:
        """Passes a part on, unless the coordinator has answered."""
        self._messages.put(message)

    def finish(self) -> None:
        """Nothing more comes."""
        self._messages.put(None)


def _hear(answer: asyncio.Future[Any]) -> None:
    """Takes note of an answer that nobody waits for."""
    if not answer.cancelled():
        answer.exception()


@contextmanager
def _noting_the_end(call: Call) -> Iterator[None]:
    """A call that ends in no other way was given up by the device, or its connection went."""
    try:
        yield
    finally:
        if call.ending == "under way":
            call.ending = "lost"


def _is_answer(error: RpcFailure) -> bool:
    """Whether the coordinator itself said so; otherwise it is not there."""
    named = any(key == METADATA_KEY for key, _ in error.trailing_metadata() or ())
    return named or error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def _classes(method: MethodDescriptor) -> tuple[Any, Any]:
    return message_factory.GetMessageClass(method.input_type), message_factory.GetMessageClass(method.output_type)


def _upstream(channel: grpc.aio.Channel, method: MethodDescriptor) -> Any:
    request, answer = _classes(method)
    make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    return make(f"/{SERVICE.full_name}/{method.name}", request.SerializeToString, answer.FromString)
