"""Airflow's own hook for local changes, copied into AIRFLOW_HOME: the policy, and savepoints that work on SQLite.

``airflow backfill create`` reads and then writes inside a savepoint. On SQLite a savepoint begins a transaction that
only reads; when another process has written in between, the first write fails at once with *database is locked*,
however long the timeout is. Taking the write lock first makes it wait its turn instead.
"""

import sqlite3
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine

from airflow_onnx.deployment.cluster_policy import task_instance_mutation_hook as task_instance_mutation_hook


@event.listens_for(Engine, "savepoint")
def lock_before_savepoint(connection: Connection, _name: Any) -> None:
    """Begin a writing transaction, unless one is open already."""
    raw = connection.connection.dbapi_connection
    if isinstance(raw, sqlite3.Connection) and not raw.in_transaction:
        raw.execute("BEGIN IMMEDIATE")
