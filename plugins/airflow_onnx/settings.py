"""What the deployment decides, and a person who triggers a release cannot: Airflow's `[onnx_release]` section.

Each option can be set as an environment variable, e.g. ``AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE=True``.
"""

from __future__ import annotations

import os
from pathlib import Path

from airflow.sdk import conf

SECTION = "onnx_release"


def allow_pickle() -> bool:
    """Tell whether pickled models may be loaded; loading one runs whatever code its author put in."""
    return bool(conf.getboolean(SECTION, "allow_pickle", fallback=False))


def staging_uri() -> str:
    """Return the folder (``file://…``) that the tasks of one release hand the artifact through."""
    home = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser().resolve()
    default = (home / "onnx_release_staging").as_uri()
    return str(conf.get(SECTION, "staging_uri", fallback=default)).rstrip("/")


def airflow_url() -> str:
    """Return the address of Airflow's UI without a trailing slash, or an empty string when it is not configured."""
    return str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
