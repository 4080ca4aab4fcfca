"""Migrations: they lie in this package and run when a store is opened."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection

from chainfed.core.errors import BadInputError


def upgrade(connection: Connection) -> None:
    """Brings the tables up to date inside the caller's transaction.

    Raises BadInputError when the database was written by a newer version of ChainFed.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise BadInputError(
            f"The state folder's database cannot be brought up to date ({error}); it may have been written "
            "by a newer "
            "ChainFed: install that, or give another state folder."
        ) from error
