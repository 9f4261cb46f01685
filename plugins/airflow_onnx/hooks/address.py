"""Address of a server in the fields host, schema and port of an Airflow connection."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    from airflow.sdk import Connection


def server_address(conn: Connection) -> SplitResult | None:
    """Return the parts of the address, None if the fields have none.

    The host may be a whole address. Without a scheme it gets the schema of the connection, else ``http``. The port of
    the connection counts only if the host has none.
    """
    host = (conn.host or "").rstrip("/")
    if host and "://" not in host:
        scheme = conn.schema if conn.schema in ("http", "https") else "http"
        host = f"{scheme}://{host}"
    try:
        parts = urlsplit(host)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            return None
        return parts if parts.port or not conn.port else parts._replace(netloc=f"{parts.netloc}:{conn.port}")
    except ValueError:  # for example a port that is not a number
        return None
