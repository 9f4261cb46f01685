"""Creation of the measuring pool at the start of a component, with a database of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = """
from airflow import settings
from airflow.jobs.job import Job
from airflow.models import team
from airflow.models.base import Base
from airflow.models.pool import Pool
from airflow.utils.session import create_session
from sqlalchemy import select

settings.initialize()
Base.metadata.create_all(settings.engine)
Job()
with create_session() as session:
    session.scalar(select(Pool)).slots = 3
Job()
with create_session() as session:
    print([(pool.pool, pool.slots) for pool in session.scalars(select(Pool))])
"""


@pytest.mark.parametrize(
    ("placement", "pool"), [("{}", "onnx_measure"), ('{"measure": {"pool": "quiet_hosts"}}', "quiet_hosts")]
)
def test_a_component_creates_the_missing_pool_and_changes_no_existing_one(
    tmp_path: Path, placement: str, pool: str
) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path / 'airflow.db'}",
        "AIRFLOW__ONNX_RELEASE__PLACEMENT": placement,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "include", ROOT / "plugins"))),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == f"[('{pool}', 3)]", done.stdout[-2000:] + done.stderr[-2000:]
