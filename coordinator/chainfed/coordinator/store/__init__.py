"""The durable state. `open_store` gives the one that an address asks for."""

from chainfed.coordinator.store.factory import open_store
from chainfed.coordinator.store.sql import SqlStore

__all__ = ["SqlStore", "open_store"]
