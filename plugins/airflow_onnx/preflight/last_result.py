"""The last results of the check, in variables of Airflow: one of the command and one of the page."""

from __future__ import annotations

import json

from airflow_onnx.preflight.run import DeploymentReport, Place
from onnx_release.errors import RecordRefused

# A variable has no size limit in PostgreSQL and MySQL's limit is 64 kB; a check has about 300 bytes.
_KEYS = {Place.COMMAND: "onnx_release_check_command", Place.API_SERVER: "onnx_release_check_api_server"}
_DESCRIPTION = "Last result of the check of the ONNX release, for its page."


def store(report: DeploymentReport) -> None:
    """Store a result in place of the one before it. For processes with the database."""
    from airflow.models.variable import Variable

    Variable.set(_KEYS[report.place], json.dumps(report.to_dict()), description=_DESCRIPTION)


def stored() -> list[DeploymentReport]:
    """Return the results that can be read, the newest first."""
    from airflow.models.variable import Variable
    from airflow.utils.session import create_session
    from sqlalchemy import select

    found = []
    with create_session() as session:
        texts = [row.get_val() for row in session.scalars(select(Variable).where(Variable.key.in_(_KEYS.values())))]
    for text in texts:
        try:
            found.append(DeploymentReport.from_dict(json.loads(text or "")))
        except (RecordRefused, ValueError):
            # Of another version of this package, or changed by a person.
            continue
    return sorted(found, key=lambda report: report.checked_at, reverse=True)
