"""The contract of a store. Another database is another factory in `STORES`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect

from chainfed.coordinator.assignments import new_assignments
from chainfed.coordinator.configuration import complete
from chainfed.coordinator.records import (
    AssignmentState,
    Blob,
    Evaluation,
    EvaluationReport,
    Metrics,
    Profile,
    Round,
    RoundKind,
    RoundOutcome,
    RoundState,
    Run,
    RunState,
    UpdateReport,
)
from chainfed.coordinator.store import SqlStore, open_store, schema
from chainfed.coordinator.store.tables import metadata
from chainfed.core.errors import BadInputError, ConflictError, NotFoundError, UnauthorizedError
from tests.coordinator.conftest import config, make_manifest

METRICS = Metrics(7, 4, 0.5, 0.4, 0.1, 0.9, 1000, 2.5)
RUN = "0123456789ab"


class SetClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms


Opener = Callable[[SetClock], Awaitable[SqlStore]]


def sqlite_factory(folder: Path) -> Opener:
    return lambda clock: open_store(f"sqlite:///{folder / 'store.sqlite'}", clock)


STORES: dict[str, Callable[[Path], Opener]] = {"sqlite": sqlite_factory}


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture(params=list(STORES))
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    return STORES[request.param](tmp_path)


@pytest.fixture
async def store(opener: Opener, clock: SetClock) -> AsyncIterator[SqlStore]:
    opened = await opener(clock)
    yield opened
    await opened.close()


def new_run(run_id: str = RUN, created_ms: int = 1_000_000) -> Run:
    settings = complete(config(), make_manifest({}))
    pieces = {"adapters.0": Blob("a" * 64, 10), "statistics": Blob("b" * 64, 20)}
    return Run(run_id, "name", RunState.CREATED, settings, Blob("c" * 64, 30), pieces, created_ms)


async def working_run(store: SqlStore) -> Run:
    await store.create_run(new_run(), "request")
    return await store.start_run(RUN)


async def devices(store: SqlStore, count: int = 3) -> list[str]:
    ids = [await store.enrol(f"key {index}", "fake", 1) for index in range(count)]
    for device_id in ids:
        await store.check_in(device_id, 0, 10, 5)
    return sorted(ids)


async def opened_round(store: SqlStore, device_ids: list[str], attempt: int = 0, number: int = 0) -> Round:
    run = await store.run(RUN)
    current = Round(RUN, number, attempt, RoundKind.TRAIN, 1, 2, len(device_ids), b"template", 1_000_000, 1_060_000)
    await store.open_round(current, new_assignments(run, number, attempt, device_ids))
    return current


async def test_a_run_is_read_as_it_was_written(store: SqlStore) -> None:
    created = await store.create_run(new_run(), "request")
    assert created == new_run() == await store.run(RUN)
    assert await store.run_by_request("request") == created
    assert await store.run_by_request("another") is None
    with pytest.raises(NotFoundError, match="does not exist"):
        await store.run("ffffffffffff")


async def test_the_same_request_makes_one_run(store: SqlStore) -> None:
    first = await store.create_run(new_run(), "request")
    assert await store.create_run(new_run("ba9876543210"), "request") == first
    later = await store.create_run(new_run("ba9876543210", 2_000_000), "another")
    assert await store.runs() == [later, first]


async def test_everything_is_there_after_a_restart(opener: Opener, clock: SetClock) -> None:
    before = await opener(clock)
    run, ids = await working_run(before), await devices(before)
    current = await opened_round(before, ids)
    await before.close()
    after = await opener(clock)
    assert await after.run(RUN) == run
    assert [device.device_id for device in await after.devices()] == ids
    assert await after.latest_attempt(RUN, 0) == current
    assert [event.sequence for event in await after.events(RUN, 0)] == [0, 1]
    await after.close()


async def test_transitions_and_their_events(store: SqlStore, clock: SetClock) -> None:
    await working_run(store)
    assert (await store.start_run(RUN)).state is RunState.PROFILING  # again changes nothing
    await store.advance(RUN, RunState.WARMING)
    clock.ms += 5
    paused = await store.pause_run(RUN, "lunch")
    assert (paused.state, paused.resume_state, paused.paused_ms) == (RunState.PAUSED, RunState.WARMING, clock.ms)
    with pytest.raises(ConflictError, match="PAUSED and cannot go to TRAINING"):
        await store.advance(RUN, RunState.TRAINING)
    assert (await store.resume_run(RUN)).state is RunState.WARMING
    cancelled = await store.cancel_run(RUN)
    assert (cancelled.state, cancelled.ended_ms) == (RunState.CANCELLED, clock.ms)
    assert await store.cancel_run(RUN) == cancelled
    for change in (store.start_run(RUN), store.pause_run(RUN, ""), store.resume_run(RUN)):
        with pytest.raises(ConflictError, match="CANCELLED"):
            await change
    events = await store.events(RUN, 0)
    assert [event.sequence for event in events] == list(range(5))
    assert [event.state for event in events] == [2, 3, 6, 3, 8]
    assert events[2].state_changed.reason == "lunch"
    assert len(await store.events(RUN, 3)) == 2


async def test_a_device_is_known_by_its_key(store: SqlStore, clock: SetClock) -> None:
    device_id = await store.enrol("key", "Pixel", 1)
    clock.ms += 10
    assert await store.enrol("key", "Pixel 9", 2) == device_id
    device = await store.device(device_id)
    assert (device.model, device.bundle_format_version, device.last_seen_ms) == ("Pixel 9", 2, 0)
    assert device.enrolled_ms == 1_000_000
    await store.touch(device_id)
    assert (await store.device(device_id)).last_seen_ms == 0  # it never checked in
    await store.check_in(device_id, 5, 6, 7)
    device = await store.device(device_id)
    assert (device.memory_budget_bytes, device.num_train_examples, device.num_test_examples) == (5, 6, 7)
    assert device.last_seen_ms == clock.ms
    with pytest.raises(NotFoundError, match="enrol first"):
        await store.check_in("f" * 16, 0, 0, 0)


async def test_a_public_key_stays_the_devices_own(opener: Opener, clock: SetClock) -> None:
    store = await opener(clock)
    device_id = await store.enrol("key", "Pixel", 1)
    assert (await store.device(device_id)).public_key is None
    assert await store.enrol("key", "Pixel", 1, b"\0mine") == device_id  # it may begin to sign
    for other in (b"another", None):
        with pytest.raises(UnauthorizedError, match="another public key before"):
            await store.enrol("key", "Pixel 9", 1, other)
    await store.close()
    store = await opener(clock)
    device = await store.device(device_id)
    assert (device.public_key, device.model) == (b"\0mine", "Pixel")
    assert await store.enrol("key", "Pixel 9", 1, b"\0mine") == device_id
    assert [device.model for device in await store.devices()] == ["Pixel 9"]
    await store.close()


async def test_only_a_new_device_must_be_admitted(store: SqlStore) -> None:
    with pytest.raises(UnauthorizedError, match="valid enrolment token"):
        await store.enrol("key", "Pixel", 1, None, False)
    assert await store.devices() == []
    device_id = await store.enrol("key", "Pixel", 1, None, True)
    assert await store.enrol("key", "Pixel", 1, None, False) == device_id


async def test_a_result_counts_once(store: SqlStore) -> None:
    await working_run(store)
    ids = await devices(store)
    current = await opened_round(store, ids)
    found = await store.next_assignment(ids[0])
    assert found is not None
    assert found[1] == current
    mine = found[0].assignment_id
    report = UpdateReport(Blob("d" * 64, 400), METRICS)
    assert await store.report(mine, ids[0], report, 400)
    assert await store.report(mine, ids[0], report, 400)
    assert (await store.run(RUN)).bytes_up == 400
    assert (await store.progress(current)).reported == 1
    assert await store.next_assignment(ids[0]) is None
    with pytest.raises(NotFoundError, match=r"Assignment .* does not exist"):
        await store.report(mine, ids[1], report, 400)
    await store.seal_round(current)
    theirs = new_assignments(await store.run(RUN), 0, 0, [ids[1]])[0].assignment_id
    assert not await store.report(theirs, ids[1], report, 400)


async def test_a_seed_of_64_bits_survives(store: SqlStore) -> None:
    await working_run(store)
    ids = await devices(store, 8)
    await opened_round(store, ids)
    expected = {each.device_id: each.seed for each in new_assignments(await store.run(RUN), 0, 0, ids)}
    assert max(expected.values()) > 2**63
    for device_id in ids:
        found = await store.next_assignment(device_id)
        assert found is not None
        assert found[0].seed == expected[device_id]


async def test_sealing_tells_late_from_superseded(store: SqlStore, clock: SetClock) -> None:
    await working_run(store)
    ids = await devices(store)
    current = await opened_round(store, ids)
    first = (await store.next_assignment(ids[0]))[0]  # type: ignore[index]
    await store.report(first.assignment_id, ids[0], EvaluationReport(5, 3, 1.5), 0)
    await store.fail_assignment(
        (await store.next_assignment(ids[1]))[0].assignment_id,
        ids[1],
        AssignmentState.ABANDONED,
        1,
        "nan",  # type: ignore[index]
    )
    clock.ms = current.deadline_ms
    reported = await store.seal_round(current)
    assert [each.device_id for each in reported] == [ids[0]]
    assert await store.seal_round(current) == reported
    failures = await store.failures(RUN, 0)
    assert [(each.device_id, each.state) for each in failures] == [
        (ids[1], AssignmentState.ABANDONED),
        (ids[2], AssignmentState.EXPIRED),
    ]
    failed = [event.device_failed for event in await store.events(RUN, 0) if event.HasField("device_failed")]
    assert [(each.device_id, each.reason) for each in failed] == [(ids[1], 1), (ids[2], 0)]
    assert "60 seconds" in failed[1].detail
    await store.drop_round(current)
    again = await opened_round(store, ids, attempt=1)
    assert await store.latest_attempt(RUN, 0) == again
    await store.seal_round(again)  # before the deadline as the clock goes by the new round's
    assert (await store.progress(again)).open == 0


async def test_closing_records_everything_in_one_step(store: SqlStore, clock: SetClock) -> None:
    run = await working_run(store)
    ids = await devices(store)
    current = await opened_round(store, ids)
    with pytest.raises(ConflictError, match="not sealed"):
        await store.close_round(current, RoundOutcome(1))
    await store.seal_round(current)
    await store.add_bytes_down(current, 77)
    clock.ms += 2500
    outcome = RoundOutcome(
        rounds_done=1,
        pieces=run.pieces | {"adapters.0": Blob("e" * 64, 11)},
        checkpoint=Blob("f" * 64, 99),
        metrics=METRICS,
        evaluation=Evaluation(1, 0.75, 0.5, 20),
        profile=Profile((0.9, 0.123456789012345678), 1, 2, True, 0.8, "because"),
    )
    closed = await store.close_round(current, outcome)
    assert (closed.rounds_done, closed.next_round, closed.foat_start, closed.window_size) == (1, 1, 1, 2)
    assert (closed.foat_scores, closed.checkpoint, closed.bytes_down) == (
        (0.9, 0.123456789012345678),
        Blob("f" * 64, 99),
        77,
    )
    assert closed.pieces == outcome.pieces
    assert await store.evaluations(RUN) == [outcome.evaluation]
    assert await store.checkpoint(RUN, None) == await store.checkpoint(RUN, 1) == Blob("f" * 64, 99)
    with pytest.raises(NotFoundError, match="its newest is that after 1"):
        await store.checkpoint(RUN, 2)
    with pytest.raises(ConflictError):
        await store.close_round(current, outcome)
    events = await store.events(RUN, 2)
    assert [event.WhichOneof("event") for event in events] == ["round_closed", "profiled", "evaluated"]
    assert (events[0].round_closed.seconds, events[0].round_closed.bytes_down) == (2.5, 77)
    assert events[0].round_closed.metrics.loss == 0.5
    assert (await store.skip_round(RUN, 1)).next_round == 2


async def test_a_pause_gives_the_round_its_time_back(store: SqlStore, clock: SetClock) -> None:
    await working_run(store)
    ids = await devices(store)
    current = await opened_round(store, ids)
    await store.pause_run(RUN, "")
    assert await store.next_assignment(ids[0]) is None
    clock.ms += 100_000
    await store.resume_run(RUN)
    newest = await store.latest_attempt(RUN, 0)
    assert newest is not None
    assert newest.deadline_ms == current.deadline_ms + 100_000
    assert await store.next_assignment(ids[0]) is not None


async def test_a_cancelled_run_takes_its_work_back(store: SqlStore) -> None:
    await working_run(store)
    ids = await devices(store)
    current = await opened_round(store, ids)
    assert len(await store.needed_uploads()) == 3
    await store.cancel_run(RUN)
    assert await store.next_assignment(ids[0]) is None
    assert await store.needed_uploads() == []
    newest = await store.latest_attempt(RUN, 0)
    assert newest is not None
    assert newest.state is RoundState.DROPPED
    with pytest.raises(ConflictError):
        await store.open_round(current, [])


async def test_waiters_are_woken_by_what_they_wait_for(store: SqlStore) -> None:
    await working_run(store)
    ids = await devices(store)
    counts = {key: store.changes.count(key) for key in (f"device:{ids[0]}", f"run:{RUN}")}
    waiting = asyncio.create_task(store.changes.changed(f"device:{ids[0]}", counts[f"device:{ids[0]}"], 5))
    assert not await store.changes.changed(f"run:{RUN}", counts[f"run:{RUN}"], 0.01)
    await opened_round(store, ids)
    assert await waiting
    assert await store.changes.changed(f"run:{RUN}", counts[f"run:{RUN}"], 0)


async def test_a_write_goes_on_when_its_caller_is_cancelled(store: SqlStore) -> None:
    task = asyncio.create_task(store.create_run(new_run(), "request"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(200):
        if await store.runs():
            break
        await asyncio.sleep(0.01)
    assert (await store.run(RUN)).run_id == RUN


async def test_an_unknown_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="sqlite:///PATH"):
        await open_store("oracle://somewhere")


async def test_the_migrations_make_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await (await open_store(f"sqlite:///{path}")).close()
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    assert differences == []


async def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    address = f"sqlite:///{path}"
    store = await open_store(address)
    device_id = await store.enrol("key", "Pixel", 1)
    await store.close()
    engine = create_engine(address)
    with engine.begin() as connection:
        migrate(connection, "0001")
        assert "public_key" not in {column["name"] for column in inspect(connection).get_columns("devices")}
    engine.dispose()
    store = await open_store(address)
    assert (await store.device(device_id)).public_key is None
    assert await store.enrol("key", "Pixel", 1, b"mine") == device_id
    await store.close()


def migrate(connection: Connection, revision: str) -> None:
    """Takes the tables back to an older version."""
    settings = Config()
    settings.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    settings.attributes["connection"] = connection
    command.downgrade(settings, revision)


async def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    await (await open_store(f"sqlite:///{path}")).close()
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    engine.dispose()
    with pytest.raises(BadInputError, match="newer ChainFed"):
        await open_store(f"sqlite:///{path}")
