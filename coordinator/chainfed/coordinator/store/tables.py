"""The tables. A change here needs a migration; a test holds the two together. Times are Unix milliseconds."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

devices = Table(
    "devices",
    metadata,
    Column("device_id", String(16), primary_key=True),
    Column("device_key", String(128), nullable=False, unique=True),
    Column("model", String(128), nullable=False),
    Column("bundle_format_version", Integer, nullable=False),
    Column("enrolled_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger, nullable=False),
    Column("memory_budget_bytes", BigInteger, nullable=False),
    Column("num_train_examples", BigInteger, nullable=False),
    Column("num_test_examples", BigInteger, nullable=False),
    Column("public_key", LargeBinary),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", String(12), primary_key=True),
    Column("request_id", String(64), nullable=False, unique=True),
    Column("name", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("resume_state", String(16)),
    Column("reason", Text, nullable=False),
    Column("config", Text, nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("manifest_bytes", BigInteger, nullable=False),
    Column("pieces", Text, nullable=False),
    Column("rounds_done", Integer, nullable=False),
    Column("next_round", Integer, nullable=False),
    Column("window_size", Integer, nullable=False),
    Column("foat_start", Integer, nullable=False),
    Column("foat_scores", Text, nullable=False),
    Column("checkpoint_sha256", String(64)),
    Column("checkpoint_bytes", BigInteger),
    Column("bytes_up", BigInteger, nullable=False),
    Column("bytes_down", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("paused_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=False),
)

rounds = Table(
    "rounds",
    metadata,
    Column("run_id", String(12), ForeignKey("runs.run_id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("first_layer", Integer, nullable=False),
    Column("window_size", Integer, nullable=False),
    Column("wanted", Integer, nullable=False),
    Column("template", LargeBinary, nullable=False),
    Column("opened_ms", BigInteger, nullable=False),
    Column("deadline_ms", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("bytes_up", BigInteger, nullable=False),
    Column("bytes_down", BigInteger, nullable=False),
)

assignments = Table(
    "assignments",
    metadata,
    Column("assignment_id", String(32), primary_key=True),
    Column("run_id", String(12), nullable=False),
    Column("round_number", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("device_id", String(16), ForeignKey("devices.device_id"), nullable=False),
    Column("seed", String(20), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    Column("report", Text),
    Column("created_ms", BigInteger, nullable=False),
    ForeignKeyConstraint(["run_id", "round_number", "attempt"], ["rounds.run_id", "rounds.number", "rounds.attempt"]),
    Index("assignments_by_round", "run_id", "round_number", "attempt"),
    Index("assignments_by_device", "device_id", "state"),
)

events = Table(
    "events",
    metadata,
    Column("run_id", String(12), ForeignKey("runs.run_id"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True),
    Column("event", Text, nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("run_id", String(12), ForeignKey("runs.run_id"), primary_key=True),
    Column("round_number", Integer, primary_key=True),
    Column("rounds_done", Integer, nullable=False),
    Column("accuracy", Float(53), nullable=False),
    Column("loss", Float(53), nullable=False),
    Column("num_examples", BigInteger, nullable=False),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("run_id", String(12), ForeignKey("runs.run_id"), primary_key=True),
    Column("round_number", Integer, primary_key=True),
    Column("rounds_done", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
)
