"""Signing key of the stack: its releases are signed, and the demo verifies the signature."""

from __future__ import annotations

import os
from pathlib import Path

from stack.layout import Layout
from stack.private import write_private

CONNECTION = "signing"
PRIVATE, PUBLIC = "signing.pem", "signing.pub"


def prepare(layout: Layout) -> None:
    """Make the key, once. Its private half has mode 600."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    if (layout.home / PUBLIC).exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    # The public half last: it shows that both are complete.
    write_private(layout.home / PRIVATE, private)
    write_private(layout.home / PUBLIC, public)


def public_key(layout: Layout) -> Path:
    """Return the file that verifies the stack's signatures, as a path relative to the current folder if it is below."""
    path = layout.home / PUBLIC
    return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path
