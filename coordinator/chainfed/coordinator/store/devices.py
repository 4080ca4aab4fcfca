"""Transactions about devices."""

from __future__ import annotations

import hashlib

from sqlalchemy import insert, select, update

from chainfed.coordinator.records import Device
from chainfed.coordinator.store import tables
from chainfed.coordinator.store.rows import device_of
from chainfed.coordinator.store.transaction import Transaction
from chainfed.core.errors import NotFoundError, UnauthorizedError


def device_id_of(device_key: str) -> str:
    """The identity that follows from a device's key: 16 hexadecimal digits."""
    return hashlib.sha256(f"chainfed-device/{device_key}".encode()).hexdigest()[:16]


def enrol(
    transaction: Transaction,
    device_key: str,
    model: str,
    bundle_format_version: int,
    public_key: bytes | None,
    admitted: bool,
) -> str:
    """Makes a device known, or takes over what it says now. Returns its device_id.

    A public key stays the device's own; a known device that had none may begin to sign. Raises UnauthorizedError for
    a new device that is not `admitted`, and for a known one with another public key or without its own.
    """
    device_id = device_id_of(device_key)
    table = tables.devices
    said = {"model": model, "bundle_format_version": bundle_format_version, "public_key": public_key}
    query = select(table.c.public_key).where(table.c.device_id == device_id)
    known = transaction.connection.execute(query).first()
    if known is not None:
        if known.public_key not in (None, public_key):
            raise UnauthorizedError(
                f"Device {device_id} enrolled with another public key before; it must go on with that one, or come as "
                "a new device with a new device key."
            )
        transaction.connection.execute(update(table).where(table.c.device_id == device_id).values(**said))
        return device_id
    if not admitted:
        raise UnauthorizedError(
            "This coordinator admits a new device only with a valid enrolment token, and this one has none; get one "
            "from the operator (chainfed device takes it as --enrolment-token)."
        )
    new = {
        "device_id": device_id,
        "device_key": device_key,
        "enrolled_ms": transaction.now_ms,
        "last_seen_ms": 0,
    }
    counts = {"memory_budget_bytes": 0, "num_train_examples": 0, "num_test_examples": 0}
    transaction.connection.execute(insert(table).values(**new, **said, **counts))
    return device_id


def check_in(transaction: Transaction, device_id: str, budget: int, num_train: int, num_test: int) -> None:
    """Stores what a device has now, and that it was seen. Raises NotFoundError for an unknown device."""
    table = tables.devices
    changed = update(table).where(table.c.device_id == device_id)
    changed = changed.values(
        memory_budget_bytes=budget,
        num_train_examples=num_train,
        num_test_examples=num_test,
        last_seen_ms=transaction.now_ms,
    )
    if transaction.connection.execute(changed).rowcount == 0:
        raise unknown_device(device_id)
    transaction.changed.add("devices")


def touch(transaction: Transaction, device_id: str) -> None:
    """Notes that a device that has checked in before was seen."""
    table = tables.devices
    known = (table.c.device_id == device_id) & (table.c.last_seen_ms > 0)
    transaction.connection.execute(update(table).where(known).values(last_seen_ms=transaction.now_ms))


def get(transaction: Transaction, device_id: str) -> Device:
    """One device. Raises NotFoundError."""
    table = tables.devices
    row = transaction.connection.execute(select(table).where(table.c.device_id == device_id)).mappings().first()
    if row is None:
        raise unknown_device(device_id)
    return device_of(row)


def every(transaction: Transaction) -> list[Device]:
    """All devices by device_id."""
    rows = transaction.connection.execute(select(tables.devices).order_by(tables.devices.c.device_id))
    return [device_of(row) for row in rows.mappings()]


def unknown_device(device_id: str) -> NotFoundError:
    """The error for a device that never enrolled here."""
    return NotFoundError(f"Device {device_id[:40]!r} is unknown to this coordinator; enrol first.")
