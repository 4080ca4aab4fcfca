"""What a device's signatures are held against."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forward: a device that is known already does not sign."""
    op.add_column("devices", sa.Column("public_key", sa.LargeBinary()))


def downgrade() -> None:
    """Back."""
    with op.batch_alter_table("devices") as devices:
        devices.drop_column("public_key")
