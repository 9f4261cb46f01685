"""Signing key of the deployment, from the Airflow connection of the option `signing_conn_id`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx.deployment import settings
from airflow_onnx.errors import DeploymentRefused
from onnx_release.text import shorten

if TYPE_CHECKING:
    from onnx_release.provenance.signature import SigningKey, Trust

# A PEM file with a key or a chain of certificates has a few kB.
_PEM_MAX_BYTES = 2**16


def signing_key() -> SigningKey | None:
    """Return the key that signs releases, or None if the deployment signs none.

    :raises DeploymentRefused: ``wrong_signing_key`` if a file of the connection cannot be read.
    """
    conn_id = settings.signing_conn_id()
    if not conn_id:
        return None
    connection, extra = _connection(conn_id)
    pem = _pem(conn_id, extra, "private_key")
    if not pem:
        # A deployment that verifies only has the public half.
        return None
    from onnx_release.provenance.signature import SigningKey

    return SigningKey(
        name=f"The connection '{conn_id}'",
        pem=pem,
        password=connection.password or None,
        certificate=_pem(conn_id, extra, "certificate"),
        chain=_pem(conn_id, extra, "certificate_chain"),
    )


def trust() -> Trust:
    """Return the signers that a version must have.

    The extra `public_key` or `certificate_chain` comes first, then the public half of the signing key.

    :raises DeploymentRefused: ``wrong_option`` without a `signing_conn_id`, else as `signing_key`.
    """
    conn_id = settings.signing_conn_id()
    if not conn_id:
        raise DeploymentRefused(
            "The option [onnx_release] require_signature",
            "is set, and signing_conn_id is empty",
            "Name a connection with a key, or clear require_signature.",
            code="wrong_option",
        )
    from onnx_release.provenance import signature

    _, extra = _connection(conn_id)
    name = f"The connection '{conn_id}'"
    public, roots = _pem(conn_id, extra, "public_key"), _pem(conn_id, extra, "certificate_chain")
    if public or roots:
        return signature.Trust(name=name, public_key=public, roots=roots)
    key = signing_key()
    if key is None:
        raise _refused(conn_id, "has neither a private key, a public key nor a chain of certificates")
    return signature.trust_of(key)


def _connection(conn_id: str) -> tuple[Any, dict[str, Any]]:
    from airflow.sdk import BaseHook

    connection = BaseHook.get_connection(conn_id)
    try:
        extra = connection.extra_dejson
    except ValueError as error:
        raise _refused(conn_id, f"has an extra that is not JSON: {shorten(error)}") from error
    return connection, extra


def _pem(conn_id: str, extra: dict[str, Any], field: str) -> str:
    """Return a PEM text of the extra, or the content of the file that ``<field>_file`` names."""
    if text := extra.get(field):
        return str(text)
    path = extra.get(f"{field}_file")
    if not path:
        return ""
    try:
        with Path(str(path)).open("rb") as file:
            return file.read(_PEM_MAX_BYTES).decode("ascii")
    except (OSError, ValueError) as error:
        raise _refused(conn_id, f"names a {field}_file that cannot be read: {shorten(error)}") from error


def _refused(conn_id: str, problem: str) -> DeploymentRefused:
    return DeploymentRefused(
        f"The connection '{conn_id}'", problem, "See docs/provenance.md for its fields.", code="wrong_signing_key"
    )
