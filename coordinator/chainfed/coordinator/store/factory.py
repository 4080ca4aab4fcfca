"""Which database an address means. SQLite in a file is the only one yet; another one is another branch
here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from chainfed.coordinator.ports import Clock, SystemClock
from chainfed.coordinator.store.schema import upgrade
from chainfed.coordinator.store.sql import SqlStore
from chainfed.core.errors import BadInputError


async def open_store(address: str, clock: Clock | None = None) -> SqlStore:
    """The store at `sqlite:///PATH`, with its tables brought up to date.

    Raises BadInputError for any other kind of address, and when a newer version of ChainFed has written the
    database.
    """
    scheme, _, path = address.partition(":///")
    if scheme != "sqlite" or not path:
        raise BadInputError(f"The store address {address!r} is unknown; give sqlite:///PATH.")
    durable, light = _sqlite_engine(Path(path), "FULL"), _sqlite_engine(Path(path), "NORMAL")
    async with durable.begin() as connection:
        await connection.run_sync(upgrade)
    return SqlStore(durable, light, clock or SystemClock())


def _sqlite_engine(path: Path, synchronous: str) -> AsyncEngine:
    """SQLite with a write-ahead log: readers and the writer do not wait for each other, and a killed
    process loses nothing."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", pool_size=4)

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            "foreign_keys=ON",
            "busy_timeout=10000",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return engine
