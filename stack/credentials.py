"""Secrets, generated once for each state folder."""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from stack.errors import StackError
from stack.private import write_private

FILE = "credentials.json"


def fernet_key() -> str:
    """Return a new key for the values that Airflow encrypts in its database."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Secrets of the stack. Without `fernet_key`, Airflow cannot read its stored connections.

    `minio_*` are the keys of MinIO's administrator, for people; `release` and `mlflow` are accounts with few rights.
    """

    airflow_username: str
    airflow_password: str
    minio_access_key: str
    minio_secret_key: str
    release_secret_key: str
    mlflow_secret_key: str
    fernet_key: str
    jwt_secret: str
    api_secret_key: str

    @classmethod
    def generate(cls) -> Credentials:
        """Return new random secrets."""
        return cls(
            airflow_username="admin",
            airflow_password=secrets.token_urlsafe(15),
            minio_access_key="minio-" + secrets.token_hex(4),
            minio_secret_key=secrets.token_hex(20),
            release_secret_key=secrets.token_hex(20),
            mlflow_secret_key=secrets.token_hex(20),
            fernet_key=fernet_key(),
            jwt_secret=secrets.token_urlsafe(48),
            api_secret_key=secrets.token_urlsafe(32),
        )

    @classmethod
    def load_or_generate(cls, home: Path) -> Credentials:
        """Return the secrets stored in `home`, or write new ones (mode 600)."""
        path = home / FILE
        if not path.exists():
            write_private(path, json.dumps(dataclasses.asdict(cls.generate()), indent=2) + "\n")
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise StackError(
                f"{path} is damaged ({error}). Run `make clean-demo` to start with an empty stack."
            ) from error
