"""Secrets of docker-compose.yaml: ``python -m deploy.env`` adds the missing ones to .env and changes no other."""

from __future__ import annotations

import argparse
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

from deploy.errors import DeployError
from stack.credentials import fernet_key
from stack.private import write_private

HEAD = """\
# Secrets of docker-compose.yaml, made by `make env`. Keep a copy: without AIRFLOW_FERNET_KEY Airflow cannot read its
# own connections. Any other ${NAME:-value} of docker-compose.yaml may be set here too.
"""


def _password() -> str:
    # Only letters and digits, because it becomes a part of addresses.
    return secrets.token_hex(20)


def _token() -> str:
    return secrets.token_hex(32)


SECRETS: dict[str, Callable[[], str]] = {
    "POSTGRES_PASSWORD": _password,
    "AIRFLOW_DB_PASSWORD": _password,
    "CELERY_DB_PASSWORD": _password,
    "MLFLOW_DB_PASSWORD": _password,
    "REDIS_PASSWORD": _password,
    "MINIO_ROOT_PASSWORD": _password,
    "RELEASE_S3_SECRET_KEY": _password,
    "MLFLOW_S3_SECRET_KEY": _password,
    "LOGS_S3_SECRET_KEY": _password,
    "AIRFLOW_ADMIN_PASSWORD": lambda: secrets.token_urlsafe(15),
    "AIRFLOW_FERNET_KEY": fernet_key,
    "AIRFLOW_JWT_SECRET": _token,
    "AIRFLOW_API_SECRET_KEY": _token,
}
# A password in an address must need no escaping. MinIO requires at least eight characters.
_IN_ADDRESSES = re.compile(r"[A-Za-z0-9._~-]{8,}")
_LINE = re.compile(r"^[ \t]*([A-Za-z_]\w*)[ \t]*=[ \t]*(.*?)[ \t]*$", re.MULTILINE)


def read(path: Path) -> dict[str, str]:
    """Return the variables of a .env file, without quotes around the values; none when the file does not exist."""
    if not path.exists():
        return {}
    return {name: value.strip("'\"") for name, value in _LINE.findall(path.read_text())}


def complete(path: Path) -> list[str]:
    """Add the missing secrets to `path`, make it readable only for its owner, and return their names.

    :raises DeployError: when an existing secret cannot work. Nothing is written then.
    """
    existing = read(path)
    for name, make in SECRETS.items():
        if make is _password and existing.get(name) and not _IN_ADDRESSES.fullmatch(existing[name]):
            raise DeployError(
                f"{name} in {path} has under eight characters, or characters that an address cannot contain. Use "
                f"letters and digits, or delete the line and run `make env` again."
            )
    missing = [name for name in SECRETS if not existing.get(name)]
    text = path.read_text() if path.exists() else HEAD
    # Remove empty values: some tools take the first value of a name, some the last.
    text = re.sub(rf"^[ \t]*(?:{'|'.join(SECRETS)})[ \t]*=[ \t]*$\n?", "", text, flags=re.MULTILINE)
    lines = [f"{name}={SECRETS[name]()}" for name in missing]
    write_private(path, "\n".join([text.rstrip("\n"), *lines]) + "\n")
    return missing


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return 0 when the file is complete."""
    parser = argparse.ArgumentParser(prog="python -m deploy.env", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path(".env"))
    path = parser.parse_args(arguments).file
    try:
        added = complete(path)
    except DeployError as error:
        print(f"env: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {len(added)} secrets added: {', '.join(added)}." if added else f"{path}: has every secret already.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
