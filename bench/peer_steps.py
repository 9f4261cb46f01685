"""Scripts that a release is compared with: torch's bare exporter, a short script, and the way that it replaces."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir  # noqa: F401 - torch imports it at the first export; imports must precede the work, as in ours
import onnxruntime
import onnxscript  # noqa: F401 - as above
import torch
from torch.onnx._internal.exporter import _core, _fx_passes  # noqa: F401 - as above

from bench.models import OUTPUT_NAMES, make
from bench.release_steps import BATCH_SIZES
from bench.step import Meter
from examples import localization  # noqa: F401 - as above
from onnx_release.limits import EXPORT_BATCH_SIZE, MODEL_FILE

TORCHSCRIPT_OPSET = 17
TORCHSCRIPT_BATCHES = (1, 1, 1, 1, 1)
MAE_MAX = 1e-5


def bare_export(meter: Meter, size: str, folder: str) -> None:
    """Call torch's exporter on a model in memory."""
    with meter.aside("make_model_s"):
        model = make(size)
    with meter.work():
        _export(model, Path(folder, MODEL_FILE))


def by_dynamo(meter: Meter, size: str, folder: str) -> None:
    """Export, load, check, and compare one random batch of each size of a release."""
    import boto3  # noqa: F401 - the other script imports it

    path = Path(folder, MODEL_FILE)
    with meter.aside("make_model_s"):
        model = make(size)
    with meter.work():
        _export(model, path)
        _check_and_compare(model, path, BATCH_SIZES)


def by_torchscript(meter: Meter, size: str, folder: str) -> None:
    """Export with the TorchScript exporter, load, check, compare five batches, and put the file into the store."""
    from bench.upload_steps import client

    path = Path(folder, MODEL_FILE)
    with meter.aside("make_model_s"):
        model = make(size)
    with meter.work():
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
        _check_and_compare(model, path, TORCHSCRIPT_BATCHES)
        with path.open("rb") as file:
            client().put_object(Bucket=os.environ["S3_BUCKET"], Key="peer/model.onnx", Body=file)


def _export(model: torch.nn.Module, path: Path) -> None:
    torch.onnx.export(
        model,
        (torch.randn(EXPORT_BATCH_SIZE, 3, 128, 32),),
        path,
        input_names=["mel_spectrogram"],
        output_names=list(OUTPUT_NAMES),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )


def _check_and_compare(model: torch.nn.Module, path: Path, sizes: Sequence[int]) -> None:
    onnx.checker.check_model(onnx.load(str(path)))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for size in sizes:
        batch = np.random.default_rng(size).standard_normal((size, 3, 128, 32)).astype(np.float32)
        with torch.no_grad():
            expected = model(torch.from_numpy(batch))
        for reference, candidate in zip(expected, session.run(None, {"mel_spectrogram": batch}), strict=True):
            mae = float(np.abs(reference.numpy() - candidate).mean())
            if not mae < MAE_MAX:
                raise SystemExit(f"The script's model has a mean absolute error of {mae}.")
