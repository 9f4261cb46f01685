"""Script that does the work of a release of a small model, in one process and with the usual libraries.

It reads the trained model from MLflow, exports, checks, compares and times it, stores it as an MLflow model in the
object store, reads it back, runs it, and registers a version with an alias.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import torch

from bench.release_steps import BATCH_SIZES
from bench.step import Meter
from bench.upload_steps import client
from bench.watch.training_steps import FEATURES, SIGNATURE

ALIAS = "candidate"
MODEL_NAME = "by-hand"
MAX_ABS = 1e-5
INPUT, OUTPUT = "signal", "position"


def release(meter: Meter, training_run_id: str, timed_s: str) -> dict[str, Any]:
    """Release the model of a training run; each batch size is timed for `timed_s` seconds."""
    with meter.work(), TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch, "onnx")
        model = _export(training_run_id, Path(scratch, "model.onnx"), folder)
        session = _session(folder)
        for size in BATCH_SIZES:
            _compare(model, session, size)
        speedups = {size: _speedup(model, session, size, float(timed_s)) for size in BATCH_SIZES}
        prefix = f"{MODEL_NAME}/{training_run_id}"
        _upload(folder, prefix)
        _compare(model, _session(_fetched(folder, prefix, Path(scratch, "fetched"))), 1)
        _register(training_run_id, prefix, speedups)
    return {"speedups": speedups}


def _export(training_run_id: str, path: Path, folder: Path) -> torch.nn.Module:
    (logged,) = mlflow.get_run(training_run_id).outputs.model_outputs
    trained = Path(mlflow.artifacts.download_artifacts(f"models:/{logged.model_id}", dst_path=str(path.parent)))
    program = torch.export.load(next(trained.rglob("*.pt2")))
    torch.onnx.export(program, (), path, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False)
    onnx.checker.check_model(str(path), full_check=True)
    mlflow.onnx.save_model(onnx.load(path), folder, signature=SIGNATURE, pip_requirements=["onnxruntime"])
    return program.module()


def _session(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(next(folder.rglob("*.onnx")), providers=["CPUExecutionProvider"])


def _batch(size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(size).standard_normal((size, FEATURES)).astype(np.float32)


def _compare(model: torch.nn.Module, session: onnxruntime.InferenceSession, size: int) -> None:
    with torch.inference_mode():
        expected = model(torch.from_numpy(_batch(size))).numpy()
    (found,) = session.run(None, {INPUT: _batch(size)})
    if not np.abs(expected - found).max() < MAX_ABS:
        raise SystemExit(f"The outputs differ at batch {size}.")


def _speedup(model: torch.nn.Module, session: onnxruntime.InferenceSession, size: int, timed_s: float) -> float:
    """Return the ratio of the medians of both sides, which are timed in turn."""
    batch, reference, candidate = _batch(size), [], []
    end = time.perf_counter() + timed_s
    with torch.inference_mode():
        while time.perf_counter() < end:
            begin = time.perf_counter()
            model(torch.from_numpy(batch))
            between = time.perf_counter()
            session.run(None, {INPUT: batch})
            reference.append(between - begin)
            candidate.append(time.perf_counter() - between)
    return float(np.median(reference) / np.median(candidate))


def _files(folder: Path) -> list[Path]:
    return [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]


def _upload(folder: Path, prefix: str) -> None:
    s3 = client()
    for path in _files(folder):
        s3.upload_file(str(folder / path), os.environ["S3_BUCKET"], f"{prefix}/{path}")


def _fetched(folder: Path, prefix: str, target: Path) -> Path:
    """Return the folder that was read back. Its bytes are those of `folder`."""
    s3 = client()
    for path in _files(folder):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        s3.download_file(os.environ["S3_BUCKET"], f"{prefix}/{path}", str(target / path))
        digests = [hashlib.sha256((side / path).read_bytes()).digest() for side in (folder, target)]
        if digests[0] != digests[1]:
            raise SystemExit(f"{path} was stored with other bytes.")
    return target


def _register(training_run_id: str, prefix: str, speedups: dict[int, float]) -> None:
    registry = mlflow.MlflowClient()
    if not registry.search_registered_models(f"name='{MODEL_NAME}'"):
        registry.create_registered_model(MODEL_NAME)
    tags = {f"speedup_b{size}": f"{speedup:.2f}" for size, speedup in speedups.items()}
    source = f"s3://{os.environ['S3_BUCKET']}/{prefix}"
    version = registry.create_model_version(MODEL_NAME, source, training_run_id, tags, await_creation_for=0)
    registry.set_registered_model_alias(MODEL_NAME, ALIAS, version.version)
