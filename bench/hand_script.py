"""What the release takes the place of, written by hand: ``python -m bench.hand_script WAY SIZE FOLDER``.

``dynamo``: export, load, check, compare at the release's batch sizes. ``torchscript``: the original project's way, the
exporter of old, the same load and check, five batches compared, and one `put_object` of the file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from bench.bare_export import export, import_exporter
from bench.marking import Marked
from bench.models import OUTPUT_NAMES, make
from bench.release_steps import BATCH_SIZES
from onnx_release.limits import MODEL_FILE
from stack.minio import REGION, S3_CONFIG

TORCHSCRIPT_OPSET = 17
BATCHES = (1, 1, 1, 1, 1)
KEY = "hand/model.onnx"
MAE_MAX = 1e-5


def by_dynamo(model: torch.nn.Module, path: Path) -> None:
    """Export, load, check, and compare one random batch of each size."""
    export(model, path)
    check_and_compare(model, path, BATCH_SIZES)


def by_torchscript(model: torch.nn.Module, path: Path) -> None:
    """Do what the original project does, up to the upload."""
    torch.onnx.export(
        model,
        (torch.randn(1, 3, 128, 32),),
        str(path),
        input_names=["mel_spectrogram"],
        output_names=list(OUTPUT_NAMES),
        dynamic_axes={name: {0: "batch"} for name in ("mel_spectrogram", *OUTPUT_NAMES)},
        opset_version=TORCHSCRIPT_OPSET,
        dynamo=False,
    )
    check_and_compare(model, path, BATCHES)


def check_and_compare(model: torch.nn.Module, path: Path, sizes: Sequence[int]) -> None:
    """Load the file, check what was loaded, and hold ONNX Runtime against PyTorch on a random batch of each size."""
    loaded = onnx.load(str(path))
    onnx.checker.check_model(loaded)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in sizes:
        batch = np.random.default_rng(size).standard_normal((size, 3, 128, 32)).astype(np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(batch))
        for wanted, found in zip(expected, session.run(None, {"mel_spectrogram": batch}), strict=True):
            mae = float(np.abs(wanted.numpy() - found).mean())
            if not mae < MAE_MAX:
                raise SystemExit(f"the hand script's model is {mae} off")


def put(path: Path) -> None:
    """Put the file into the bucket that the environment names, in one request."""
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", endpoint_url=os.environ["S3_URL"], region_name=REGION, config=Config(**S3_CONFIG))
    with path.open("rb") as file:
        client.put_object(Bucket=os.environ["S3_BUCKET"], Key=KEY, Body=file)


def _main(way: str, size: str, folder: str) -> None:
    import boto3  # noqa: F401 - one of the imports

    import_exporter()
    marked, path = Marked(), Path(folder, MODEL_FILE)
    with marked.aside("make_model_s"):
        model = make(size)
    with marked.work():
        if way == "dynamo":
            by_dynamo(model, path)
        else:
            by_torchscript(model, path)
            put(path)
    marked.report()


if __name__ == "__main__":
    _main(*sys.argv[1:])
