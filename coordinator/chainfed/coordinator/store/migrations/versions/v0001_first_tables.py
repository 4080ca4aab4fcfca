"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forward."""
    op.create_table(
        "devices",
        sa.Column("device_id", sa.String(16), primary_key=True),
        sa.Column("device_key", sa.String(128), nullable=False, unique=True),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("bundle_format_version", sa.Integer(), nullable=False),
        sa.Column("enrolled_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("memory_budget_bytes", sa.BigInteger(), nullable=False),
        sa.Column("num_train_examples", sa.BigInteger(), nullable=False),
        sa.Column("num_test_examples", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(12), primary_key=True),
        sa.Column("request_id", sa.String(64), nullable=False, unique=True),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("resume_state", sa.String(16)),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("manifest_sha256", sa.String(64), nullable=False),
        sa.Column("manifest_bytes", sa.BigInteger(), nullable=False),
        sa.Column("pieces", sa.Text(), nullable=False),
        sa.Column("rounds_done", sa.Integer(), nullable=False),
        sa.Column("next_round", sa.Integer(), nullable=False),
        sa.Column("window_size", sa.Integer(), nullable=False),
        sa.Column("foat_start", sa.Integer(), nullable=False),
        sa.Column("foat_scores", sa.Text(), nullable=False),
        sa.Column("checkpoint_sha256", sa.String(64)),
        sa.Column("checkpoint_bytes", sa.BigInteger()),
        sa.Column("bytes_up", sa.BigInteger(), nullable=False),
        sa.Column("bytes_down", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("paused_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "rounds",
        sa.Column("run_id", sa.String(12), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("attempt", sa.Integer(), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("first_layer", sa.Integer(), nullable=False),
        sa.Column("window_size", sa.Integer(), nullable=False),
        sa.Column("wanted", sa.Integer(), nullable=False),
        sa.Column("template", sa.LargeBinary(), nullable=False),
        sa.Column("opened_ms", sa.BigInteger(), nullable=False),
        sa.Column("deadline_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("bytes_up", sa.BigInteger(), nullable=False),
        sa.Column("bytes_down", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "assignments",
        sa.Column("assignment_id", sa.String(32), primary_key=True),
        sa.Column("run_id", sa.String(12), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("device_id", sa.String(16), sa.ForeignKey("devices.device_id"), nullable=False),
        sa.Column("seed", sa.String(20), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Integer(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("report", sa.Text()),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "round_number", "attempt"], ["rounds.run_id", "rounds.number", "rounds.attempt"]
        ),
    )
    op.create_index("assignments_by_round", "assignments", ["run_id", "round_number", "attempt"])
    op.create_index("assignments_by_device", "assignments", ["device_id", "state"])
    op.create_table(
        "events",
        sa.Column("run_id", sa.String(12), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("sequence", sa.BigInteger(), primary_key=True),
        sa.Column("event", sa.Text(), nullable=False),
    )
    op.create_table(
        "evaluations",
        sa.Column("run_id", sa.String(12), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("round_number", sa.Integer(), primary_key=True),
        sa.Column("rounds_done", sa.Integer(), nullable=False),
        sa.Column("accuracy", sa.Float(53), nullable=False),
        sa.Column("loss", sa.Float(53), nullable=False),
        sa.Column("num_examples", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "checkpoints",
        sa.Column("run_id", sa.String(12), sa.ForeignKey("runs.run_id"), primary_key=True),
        sa.Column("round_number", sa.Integer(), primary_key=True),
        sa.Column("rounds_done", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
    )


def downgrade() -> None:
    """Back."""
    op.drop_table("checkpoints")
    op.drop_table("evaluations")
    op.drop_table("events")
    op.drop_table("assignments")
    op.drop_table("rounds")
    op.drop_table("runs")
    op.drop_table("devices")
