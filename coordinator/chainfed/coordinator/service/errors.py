"""How an error leaves a servicer: status and sentence, and the class's code in trailing metadata."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, TypeVar

import grpc

from chainfed.core.errors import METADATA_KEY, ChainFedError

log = logging.getLogger(__name__)

_LONGEST_SENTENCE = 2000

Servicer = TypeVar("Servicer")
Request = TypeVar("Request")
Response = TypeVar("Response")
Context = grpc.aio.ServicerContext[Any, Any]


def answering(
    method: Callable[[Servicer, Request, Context], Awaitable[Response]],
) -> Callable[[Servicer, Request, Context], Awaitable[Response]]:
    """For a method with one response: whatever it raises becomes a status."""

    @functools.wraps(method)
    async def wrapped(servicer: Servicer, request: Request, context: Context) -> Response:
        try:
            return await method(servicer, request, context)
        except (Exception, asyncio.CancelledError) as error:
            await _leave(context, error)

    return wrapped


def streaming(
    method: Callable[[Servicer, Request, Context], AsyncIterator[Response]],
) -> Callable[[Servicer, Request, Context], AsyncIterator[Response]]:
    """For a method with a stream of responses: whatever it raises becomes a status."""

    @functools.wraps(method)
    async def wrapped(servicer: Servicer, request: Request, context: Context) -> AsyncIterator[Response]:
        try:
            async for response in method(servicer, request, context):
                yield response
        except (Exception, asyncio.CancelledError) as error:
            await _leave(context, error)

    return wrapped


async def _leave(context: Context, error: BaseException) -> NoReturn:
    if isinstance(error, (asyncio.CancelledError, grpc.aio.AbortError)):
        raise error
    if isinstance(error, ChainFedError):
        status = grpc.StatusCode[error.grpc_status]
        await context.abort(status, str(error)[:_LONGEST_SENTENCE], ((METADATA_KEY, error.code),))
    if isinstance(error, grpc.RpcError):
        raise error
    log.error("a call failed unexpectedly", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "The coordinator met a defect; its log says more.")
    raise AssertionError("abort returned")
