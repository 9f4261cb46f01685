"""Verification of a released model at the end of the demo: with the project's command and the signature's own tool."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rich.console import Console

from stack import children, signing
from stack.context import Context
from stack.environment import clean_environment
from stack.layout import REPO
from stack.minio import s3_client
from stack.release import Outcome


def verify(context: Context, console: Console, outcome: Outcome) -> bool:
    """Download the folder of a release and verify it. Return False if a check fails."""
    key = signing.public_key(context.layout)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / f"{outcome.version['name']}-{outcome.version['version']}"
        _download(context, outcome.uploaded["bucket"], outcome.uploaded["prefix"], folder)
        commands = {
            "onnx-release verify": ("onnx_release.cli.main", "verify", str(folder), "--public-key", str(key)),
            "model_signing verify key": (
                "model_signing", "verify", "key", "--signature", str(folder / "model.sig"), "--public_key", str(key),
                str(folder),
            ),
        }  # fmt: skip
        failed = False
        env = clean_environment(PYTHONPATH=str(REPO / "include"))
        for shown, arguments in commands.items():
            status, output = children.run([sys.executable, "-m", *arguments], env, Path.cwd())
            failed = failed or status != 0
            console.print(f"\n{shown}, with the key {key}:", markup=False)
            console.print(output, markup=False, highlight=False)
    return not failed


def _download(context: Context, bucket: str, prefix: str, folder: Path) -> None:
    client = s3_client(context)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            path = folder / str(item["Key"]).removeprefix(prefix).lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, item["Key"], str(path))
