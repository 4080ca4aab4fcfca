"""A coordinator: state folder, services and runs, from start to stop."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import grpc

from chainfed.coordinator.blobs import FolderBlobs, Updates
from chainfed.coordinator.certificate import ServerCertificate
from chainfed.coordinator.enrolment_tokens import EnrolmentTokens
from chainfed.coordinator.ports import SystemClock
from chainfed.coordinator.rounds import Patience
from chainfed.coordinator.runner import Runner
from chainfed.coordinator.service import device_service, run_service
from chainfed.coordinator.store import SqlStore, open_store
from chainfed.core.address import DEFAULT_ADDRESS, split_address
from chainfed.core.errors import AddressInUseError, BadInputError
from chainfed.core.rpc import SERVER_OPTIONS

log = logging.getLogger(__name__)

_GRACE_SECONDS = 2.0


class Coordinator:
    """A running coordinator; an asynchronous context manager.

    `state` holds everything that it must not forget: `coordinator.sqlite`, `blobs/`, `uploads/`. One
    process at a time uses it. `listen` is HOST:PORT; with port 0 the system chooses one, which `address`
    says. Without a certificate it speaks in plain text; without tokens it admits every device.
    """

    def __init__(
        self,
        state: Path,
        listen: str = DEFAULT_ADDRESS,
        patience: Patience | None = None,
        certificate: ServerCertificate | None = None,
        tokens: EnrolmentTokens | None = None,
    ) -> None:
        self._state, self._listen, self._patience = state, listen, patience or Patience()
        self._certificate, self._tokens = certificate, tokens
        self._lock = -1
        self.address = ""

    async def __aenter__(self) -> Coordinator:
        """Starts it. Raises AddressInUseError when folder or port are taken, BadInputError when they cannot
        be used."""
        host, port = split_address(self._listen)
        self._lock = lock_folder(self._state)
        try:
            await self._start(host, port)
        except BaseException:
            os.close(self._lock)
            raise
        log.info("listening", extra={"address": self.address, "state": str(self._state)})
        return self

    async def _start(self, host: str, port: int) -> None:
        clock = SystemClock()
        blobs, updates = FolderBlobs(self._state / "blobs"), Updates(self._state / "uploads")
        self._store: SqlStore = await open_store(f"sqlite:///{self._state / 'coordinator.sqlite'}", clock)
        try:
            self._runner = Runner(self._store, blobs, updates, clock, self._patience)
            self._devices = device_service.DeviceService(self._store, blobs, updates, self._runner, self._tokens)
            self._runs = run_service.RunService(self._store, blobs, self._runner, clock)
            self._server = grpc.aio.server(options=SERVER_OPTIONS)
            device_service.add(self._devices, self._server)
            run_service.add(self._runs, self._server)
            self.address = self._bind(host, port)
            await self._runner.recover()
            await self._server.start()
        except BaseException:
            await self._store.close()
            raise

    def _bind(self, host: str, port: int) -> str:
        shown = f"[{host}]" if ":" in host else host
        try:
            if self._certificate is None:
                bound = self._server.add_insecure_port(f"{shown}:{port}")
            else:
                bound = self._server.add_secure_port(f"{shown}:{port}", self._certificate.credentials())
        except RuntimeError as error:
            raise AddressInUseError(
                f"The coordinator cannot listen on {shown}:{port}: another process holds the port, or the "
                "address is not "
                "this machine's; stop that process or give another --listen (port 0 takes a free one)."
            ) from error
        return f"{shown}:{bound}"

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops it: answers held check-ins, lets calls and runs end, and closes the store. Nothing is
        lost."""
        self._devices.stop()
        self._runs.stop()
        await self._runner.stop()
        await self._server.stop(_GRACE_SECONDS)
        await self._store.close()
        os.close(self._lock)
        log.info("stopped")


def lock_folder(folder: Path) -> int:
    """Takes a state folder for this process, making it if need be. Returns a descriptor that holds it until
    it is closed.

    Raises AddressInUseError when another process has it and BadInputError when it cannot be used.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BadInputError(
            f"The state folder {folder} cannot be used ({error.strerror}); give a folder that can be written."
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise AddressInUseError(
            f"The state folder {folder} is in use by another coordinator; stop that one or give another --state."
        ) from error
    return descriptor


@contextmanager
def in_background(
    state: Path,
    listen: str = "127.0.0.1:0",
    patience: Patience | None = None,
    certificate: ServerCertificate | None = None,
    tokens: EnrolmentTokens | None = None,
) -> Iterator[str]:
    """A coordinator in a thread with an event loop of its own, for emulations and tests. Gives its address.

    Raises what starting it raises.
    """
    started = threading.Event()
    outcome: list[str | BaseException] = []
    ending: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        ending.append((asyncio.get_running_loop(), stop))
        async with Coordinator(state, listen, patience, certificate, tokens) as coordinator:
            outcome.append(coordinator.address)
            started.set()
            await stop.wait()

    def body() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            outcome.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=body, name="coordinator", daemon=True)
    thread.start()
    started.wait()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    try:
        yield outcome[0]
    finally:
        loop, stop = ending[0]
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
