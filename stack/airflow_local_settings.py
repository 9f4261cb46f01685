"""Savepoints for SQLite, in the module that Airflow imports for local settings. Copied into AIRFLOW_HOME.

``airflow backfill create`` reads and then writes inside a savepoint. On SQLite a savepoint begins a transaction that
only reads. If another process has written since, the first write fails immediately with *database is locked*, with
any timeout. A transaction that takes the write lock first waits instead.
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
