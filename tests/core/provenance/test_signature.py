"""Signatures of a folder: made here, verified here and by the stock tool of model-signing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from onnx_release.limits import REPORT_FILE, REPORT_PAGE, SIGNATURE_FILE
from onnx_release.provenance.signature import SigningKey, Trust, sign, trust_of, verify
from tests.core.provenance import keys
from tests.refusals import refused

FILES = ("model.onnx", "MLmodel", "bom.cdx.json", "provenance.intoto.json", REPORT_FILE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "model"
    found.mkdir()
    for name in FILES:
        (found / name).write_text(name)
    return found


def stock_tool(folder: Path, public: str) -> subprocess.CompletedProcess[str]:
    path = folder.parent / "key.pub"
    path.write_text(public)
    command = (
        sys.executable, "-m", "model_signing", "verify", "key", "--signature", str(folder / SIGNATURE_FILE),
        "--public_key", str(path), str(folder),
    )  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_stock_tool_verifies_a_signed_folder_and_finds_a_changed_file(folder: Path) -> None:
    key = keys.new_key()
    sign(folder, keys.signing_key(key))
    # The promotion writes the reports after the signature.
    (folder / REPORT_FILE).write_text("of the promotion")
    (folder / REPORT_PAGE).write_text("of the promotion")
    found = stock_tool(folder, keys.public_pem(key))
    assert found.returncode == 0, found.stderr
    (folder / "model.onnx").write_text("other")
    assert stock_tool(folder, keys.public_pem(key)).returncode != 0


def _link(folder: Path) -> None:
    (folder / "link").symlink_to("/etc/hosts")


CHANGES: dict[str, Callable[[Path], object]] = {
    "changed": lambda folder: (folder / "model.onnx").write_text("other"),
    "missing": lambda folder: (folder / "MLmodel").unlink(),
    "added": lambda folder: (folder / "extra.py").write_text("x"),
    "changed bill": lambda folder: (folder / "bom.cdx.json").write_text("{}"),
    "link": _link,
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_the_files_is_found(folder: Path, change: str) -> None:
    key = keys.signing_key()
    sign(folder, key)
    verify(folder, trust_of(key))
    CHANGES[change](folder)
    with refused("signature_mismatch", SIGNATURE_FILE):
        verify(folder, trust_of(key))


def test_a_changed_file_is_named_for_every_digest(folder: Path) -> None:
    key = keys.signing_key()
    sign(folder, key)
    # The library's text is quoted in one way or another, which depends on the bytes of the digests.
    for number in range(60):
        (folder / "model.onnx").write_text(str(number))
        with refused("signature_mismatch", "Hash mismatch for 'model.onnx'") as caught:
            verify(folder, trust_of(key))
        assert "Digest" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff" * 50, b"[" * 100_000, b'{"mediaType": 1}'])
def test_a_file_that_is_no_signature_is_refused(folder: Path, content: bytes) -> None:
    (folder / SIGNATURE_FILE).write_bytes(content)
    with refused("foreign_signature"):
        verify(folder, trust_of(keys.signing_key()))


def test_missing_large_and_foreign_signatures_are_refused_by_name(folder: Path) -> None:
    key = keys.signing_key()
    with refused("unsigned"):
        verify(folder, trust_of(key))
    sign(folder, keys.signing_key())
    with refused("foreign_signature", key.name):
        verify(folder, trust_of(key))
    (folder / SIGNATURE_FILE).write_bytes(b" " * (2**22 + 1))
    with refused("foreign_signature", str(2**22)):
        verify(folder, trust_of(key))


def test_a_certificate_signs_and_another_root_does_not_accept_it(folder: Path) -> None:
    root, signer = keys.new_key(), keys.new_key()
    chain = keys.certificate("root", root, "root", root)
    key = SigningKey(
        name="The key", pem=keys.private_pem(signer), certificate=keys.certificate("us", signer, "root", root),
        chain=chain,
    )  # fmt: skip
    sign(folder, key)
    verify(folder, Trust(name="the root", roots=chain))
    other = keys.new_key()
    with refused("foreign_signature"):
        verify(folder, Trust(name="another root", roots=keys.certificate("root", other, "root", other)))


def test_keys_that_cannot_sign_are_refused_before_anything_is_written(folder: Path) -> None:
    encrypted = keys.private_pem(keys.new_key(), "secret")
    bad = (
        SigningKey(name="The key", pem=""),
        SigningKey(name="The key", pem="no key"),
        SigningKey(name="The key", pem=keys.private_pem(rsa.generate_private_key(65537, 2048))),
        SigningKey(name="The key", pem=keys.private_pem(keys.new_key(ec.SECP256K1()))),
        SigningKey(name="The key", pem=encrypted),
        SigningKey(name="The key", pem=encrypted, password="other"),
    )
    for key in bad:
        with refused("unusable_key", "The key"):
            sign(folder, key)
    assert not (folder / SIGNATURE_FILE).exists()
    sign(folder, SigningKey(name="The key", pem=encrypted, password="secret"))
    assert "secret" not in repr(SigningKey(name="The key", pem=encrypted, password="secret"))
