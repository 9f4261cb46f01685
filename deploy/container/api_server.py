"""Start of Airflow's API server with the login from the environment, which is then removed from it."""

from __future__ import annotations

import json
import os
import sys

USER = "admin"


def main() -> None:
    """Write the simple auth manager's file, readable only for this user, and execute the server."""
    login = {USER: os.environ.pop("AIRFLOW_ADMIN_PASSWORD")}
    path = os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(login, file)
    os.execv(sys.executable, [sys.executable, "-m", "airflow", "api-server", *sys.argv[1:]])  # noqa: S606 - no shell


if __name__ == "__main__":
    main()
