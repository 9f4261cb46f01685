"""Savepoints that work on SQLite, in the module that Airflow imports for local changes; copied into AIRFLOW_HOME.

``airflow backfill create`` reads and then writes inside a savepoint. On SQLite a savepoint begins a transaction that
only reads. If another process has written in between, the first write fails immediately with *database is locked*,
whatever the timeout is. Taking the write lock first makes the transaction wait instead.
"""

import sqlite3
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine


@event.listens_for(Engine, "savepoint")
def lock_before_savepoint(connection: Connection, _name: Any) -> None:
    """Begin a writing transaction, unless one is open already."""
    raw = connection.connection.dbapi_connection
    if isinstance(raw, sqlite3.Connection) and not raw.in_transaction:
        raw.execute("BEGIN IMMEDIATE")
