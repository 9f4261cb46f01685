"""Evidence of an exported folder, as a release puts it beside its objects: bill of materials, statement, signature."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release.cli.measuring import wrong_argument
from onnx_release.cli.pem_file import read_pem
from onnx_release.records import ReleaseReport
from onnx_release.records.provenance import TrainingFacts

if TYPE_CHECKING:
    from onnx_release.provenance.signature import SigningKey

VARIABLE = "ONNX_RELEASE_SIGNING_PASSWORD"


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the options of the signature."""
    arguments.add_argument(
        "--signing-key", metavar="PEM", help=f"sign the folder with this private key; its password: {VARIABLE}"
    )
    arguments.add_argument("--certificate", metavar="PEM", help="the signer's certificate, with --signing-key")
    arguments.add_argument(
        "--certificate-chain", metavar="PEM", help="the certificates up to the root, with --certificate"
    )


def signing_key(arguments: argparse.Namespace) -> SigningKey | None:
    """Return the key of the options, or None without one.

    Raises:
        CommandRefused: ``wrong_argument`` for a file that is not in PEM form, or options without the key.
        SignatureRefused: if the key cannot be used.
    """
    for option, needed in (("certificate", "signing_key"), ("certificate_chain", "certificate")):
        if getattr(arguments, option) and not getattr(arguments, needed):
            name, other = (f"--{one.replace('_', '-')}" for one in (option, needed))
            raise wrong_argument(name, f"needs {other}", f"Add {other}.")
    if not arguments.signing_key:
        return None
    from onnx_release.provenance import signature

    pem = {
        name: read_pem(path, f"--{name.replace('_', '-')}") if (path := getattr(arguments, name)) else ""
        for name in ("signing_key", "certificate", "certificate_chain")
    }
    key = signature.SigningKey(
        name="The key --signing-key",
        pem=pem["signing_key"],
        password=os.environ.get(VARIABLE) or None,
        certificate=pem["certificate"],
        chain=pem["certificate_chain"],
    )
    # An unusable key is refused before an export of minutes.
    signature.fingerprint(key)
    return key


def write(folder: Path, report: ReleaseReport, key: SigningKey | None) -> None:
    """Write the evidence beside the report."""
    from onnx_release.provenance.evidence import write_evidence

    if report.artifact is None:
        return
    run_id, facts = report.trained_model.training_run_id, TrainingFacts()
    if run_id:
        from onnx_release.cli.mlflow_trace import training_run_facts

        facts = training_run_facts(run_id)
    write_evidence(folder, report, report.artifact, facts, key)
