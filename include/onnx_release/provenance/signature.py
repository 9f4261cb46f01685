"""Signature of an artifact folder in the form of OpenSSF's model-signing, which its stock tool verifies.

It covers the files of the artifact, the bill of materials and the provenance statement. The reports are outside: the
promotion writes them again. The signature lists these names as ignored, so the stock tool needs no option for them.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_release.errors import SignatureRefused
from onnx_release.limits import BILL_FILE, REPORTS, SIGNATURE_FILE, STATEMENT_FILE
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.text import shorten

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CURVES = ("secp256r1", "secp384r1", "secp521r1")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# More than the manifest of ten thousand files.
SIGNATURE_MAX_BYTES = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """Private key of the signer. Its text never appears in `repr`.

    Attributes:
        name: the place of the key in messages, such as ``The connection 'signing'``.
        pem: the private key on an elliptic curve, PEM.
        password: its password, or None.
        certificate: the signer's certificate, PEM; empty to sign with the bare key.
        chain: certificates between it and the root, PEM.
    """

    name: str
    pem: str
    password: str | None = None
    certificate: str = ""
    chain: str = ""

    def __repr__(self) -> str:
        return f"SigningKey(name={self.name!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Signers that a verifier accepts: either one public key, or certificates.

    Attributes:
        name: the place of the trust in messages.
        public_key: a public key, PEM.
        roots: certificates of the roots, PEM, and those between root and signer.
    """

    name: str
    public_key: str = ""
    roots: str = ""


def trust_of(key: SigningKey) -> Trust:
    """Return the trust in one's own key: its public half, or its chain of certificates."""
    if key.certificate:
        return Trust(name=key.name, roots=key.chain)
    return Trust(name=key.name, public_key=_public_pem(key).decode())


def fingerprint(key: SigningKey) -> str:
    """Return the sha256 of the public key in PEM form, as `sha256sum` prints it for the file."""
    return hashlib.sha256(_public_pem(key)).hexdigest()


def sign(folder: Path, key: SigningKey) -> Path:
    """Sign the files of a folder and return the path of `SIGNATURE_FILE` in it.

    Raises:
        SignatureRefused: if the key cannot be used.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    model_signing = _library()
    plain = _load_key(key).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    config = model_signing.signing.Config().set_hashing_config(_hashing(model_signing, folder))
    path = folder / SIGNATURE_FILE
    # The library reads keys from files. These are in memory, so the private key never reaches a disk.
    with ExitStack() as stack:
        private_key = stack.enter_context(_memory_file(plain))
        try:
            if key.certificate:
                chain = [stack.enter_context(_memory_file(one)) for one in _certificates(key.chain)]
                config.use_certificate_signer(
                    private_key=private_key,
                    signing_certificate=stack.enter_context(_memory_file(key.certificate.encode())),
                    certificate_chain=chain,
                )
            else:
                config.use_elliptic_key_signer(private_key=private_key)
            config.sign(folder, path)
        except (ValueError, TypeError) as error:
            raise SignatureRefused(
                key.name,
                f"has a key or certificate that cannot sign: {shorten(error)}",
                _KEY_ACTION,
                code="unusable_key",
            ) from error
    return path


def verify(folder: Path, trust: Trust) -> None:
    """Compare a folder with its signature, and the signature with the trusted signers.

    Raises:
        SignatureRefused: ``unsigned``, ``foreign_signature`` (another signer, or a damaged signature), or
            ``signature_mismatch`` (a file is changed, missing or added).
    """
    model_signing = _library()
    path = folder / SIGNATURE_FILE
    subject = f"The signature {SIGNATURE_FILE}"
    if path.is_symlink() or not path.is_file():
        raise SignatureRefused(
            subject, "is missing", "Release the training run again with a signing key.", code="unsigned"
        )
    if path.stat().st_size > SIGNATURE_MAX_BYTES:
        raise _foreign(subject, trust, f"it has {path.stat().st_size} bytes, more than {SIGNATURE_MAX_BYTES}")
    if links := [one.name for one in folder.rglob("*") if one.is_symlink()]:
        raise _mismatch(subject, f"Links in the folder: {', '.join(sorted(links))}")
    config = model_signing.verifying.Config()
    with ExitStack() as stack:
        if trust.public_key:
            config.use_elliptic_key_verifier(public_key=stack.enter_context(_memory_file(trust.public_key.encode())))
        else:
            roots = [stack.enter_context(_memory_file(one)) for one in _certificates(trust.roots)]
            config.use_certificate_verifier(certificate_chain=roots)
        try:
            config.set_hashing_config(_hashing(model_signing, folder)).verify(folder, path)
        except Exception as error:
            raise_machine_failure(error)
            if str(error).startswith("Signature mismatch"):
                raise _mismatch(subject, _differences(str(error))) from error
            raise _foreign(subject, trust, shorten(error) or type(error).__name__) from error


def _differences(text: str) -> str:
    """Return the differences in the library's text without the bytes of each digest.

    The text ends with the representation of a list, whose quotes depend on these bytes.
    """
    try:
        found = ast.literal_eval(text.partition(": ")[2])
    except (ValueError, SyntaxError):
        return text
    return "; ".join(str(one).partition(": Expected ")[0] for one in found)


def _mismatch(subject: str, problems: str) -> SignatureRefused:
    return SignatureRefused(
        subject,
        f"does not fit the files: {shorten(problems)}",
        "Find the program that changed the folder, and release the training run again.",
        code="signature_mismatch",
    )


def _foreign(subject: str, trust: Trust, reason: str) -> SignatureRefused:
    return SignatureRefused(
        subject,
        f"is not one of {trust.name}: {reason}",
        "Verify it with the key of its signer, or release the training run again.",
        code="foreign_signature",
    )


def _hashing(model_signing: Any, folder: Path) -> Any:
    ignored = sorted(REPORTS - {BILL_FILE, STATEMENT_FILE})
    return model_signing.hashing.Config().set_ignored_paths(paths=[folder / name for name in ignored])


def _load_key(key: SigningKey) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        loaded = load_pem_private_key(key.pem.encode(), key.password.encode() if key.password else None)
    except (ValueError, TypeError) as error:
        raise SignatureRefused(
            key.name, f"has a private key that cannot be read: {shorten(error)}", _KEY_ACTION, code="unusable_key"
        ) from error
    if not isinstance(loaded, EllipticCurvePrivateKey) or loaded.curve.name not in CURVES:
        kind = loaded.curve.name if isinstance(loaded, EllipticCurvePrivateKey) else type(loaded).__name__.lstrip("_")
        raise SignatureRefused(
            key.name,
            f"has a private key of the kind {kind}, not one of {', '.join(CURVES)}",
            _KEY_ACTION,
            code="unusable_key",
        )
    return loaded


def _public_pem(key: SigningKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return _load_key(key).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _certificates(pem: str) -> Sequence[bytes]:
    """Return each certificate of a PEM text: the library reads one from each file."""
    return [found.encode() for found in _PEM.findall(pem)]


@contextmanager
def _memory_file(content: bytes) -> Iterator[Path]:
    """Yield the path of an anonymous file in memory, which only this process can open."""
    descriptor = os.memfd_create("signing", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _library() -> Any:
    try:
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise SignatureRefused(
            "The package model-signing",
            f"cannot be imported: {shorten(error)}",
            "Install the extra: pip install 'airflow-onnx-release[signing]'.",
            code="no_signing_package",
        ) from error
    return model_signing


_KEY_ACTION = (
    "Make a key with: openssl ecparam -name prime256v1 -genkey -noout. A certificate must belong to the private key."
)
