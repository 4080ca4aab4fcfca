"""Bytes between a device and the proxy, over a connection that can be lost at any byte."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

_READ_BYTES = 16_384
_RESET_AT_ONCE = struct.pack("ii", 1, 0)


class Relay:
    """Listens on a loopback port and passes bytes on to another; for one event loop."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._left: int | None = None
        self.cuts = 0

    async def start(self) -> int:
        """Begins to listen and returns the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        """Ends the listening and every connection."""
        self._server.close()
        self._reset()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Loses every connection now: both ends see a reset."""
        self.cuts += 1
        self._left = None
        self._reset()

    def cut_after(self, num_bytes: int) -> None:
        """Loses every connection after so many more bytes to the device, which is seldom between two messages."""
        self._left = num_bytes

    def _reset(self) -> None:
        for writer in self._writers:
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_ONCE)
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits until the kernel has everything
        self._writers |= {writer, back}
        with contextlib.suppress(OSError):
            await asyncio.gather(self._pump(reader, back, False), self._pump(there, writer, True))
        self._writers -= {writer, back}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_device: bool) -> None:
        try:
            while data := await reader.read(_READ_BYTES):
                if to_device and self._left is not None:
                    data = data[: self._left]
                    self._left -= len(data)
                writer.write(data)
                await writer.drain()
                if to_device and self._left == 0:
                    self.cut()
                    return
        finally:
            writer.close()
