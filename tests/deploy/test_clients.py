"""What clients of a deployment get of its secrets."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from deploy import clients, env
from deploy.compose import REPO, Project
from stack.ports import Ports


@pytest.mark.parametrize("account", clients.ACCOUNTS)
def test_an_account_has_its_own_secret(tmp_path: Path, account: str) -> None:
    project = Project(env_file=tmp_path / ".env")
    env.complete(project.env_file)
    secrets = env.read(project.env_file)
    context = clients.context(project, tmp_path, Ports(airflow=1, mlflow=2, minio=3), account)
    keys = context.credentials
    assert (keys.airflow_username, keys.airflow_password) == ("admin", secrets["AIRFLOW_ADMIN_PASSWORD"])
    assert (keys.minio_access_key, keys.minio_secret_key) == (account, secrets[clients.ACCOUNTS[account]])
    assert keys.fernet_key != secrets["AIRFLOW_FERNET_KEY"], "a client has no need of it"
    assert context.minio_url == "http://127.0.0.1:3"


def test_the_accounts_are_those_of_the_set_up() -> None:
    script = (REPO / "deploy" / "minio" / "setup.sh").read_text()
    assert dict(re.findall(r'^account (\S+) "\$(\w+)"', script, re.MULTILINE)) == clients.ACCOUNTS
