"""The steps of `big_model`, each run as a process of its own: ``python -m bench.big_steps STEP FOLDER``.

The last line of its output is JSON: `wall_s`, `peak_bytes` (resident, above the imports), and what the step found.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.big import FACTORY, FACTORY_KWARGS, INPUT_SPEC, OF_EXPERIMENT, SIZE
from onnx_release.check import CheckOptions, check_artifact
from onnx_release.factory import FactoryOptions
from onnx_release.judge import compare_artifact
from onnx_release.records import OnnxArtifact
from onnx_release.steps import ExportStepOptions, export_trained
from onnx_release.subject import JudgeOptions

WEIGHTS = "weights.safetensors"


def _make(folder: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    from examples.localization import LocalizationNet

    torch.manual_seed(0)
    save_file(LocalizationNet(SIZE).state_dict(), folder / WEIGHTS)
    return {}


def _factory() -> FactoryOptions:
    return FactoryOptions(path=FACTORY, allowed=("examples",), kwargs=FACTORY_KWARGS)


def _export(folder: Path) -> dict[str, Any]:
    options = ExportStepOptions(device="cpu", factory=_factory(), input_spec=INPUT_SPEC)
    artifact = export_trained(folder / WEIGHTS, folder / "onnx", options)
    (folder / "artifact.json").write_text(json.dumps(artifact.to_dict()))
    attempts = [dataclasses.asdict(attempt) for attempt in artifact.attempts]
    return {"artifact_bytes": artifact.size_bytes, "exporter": artifact.exporter, "attempts": attempts}


def _artifact(folder: Path) -> OnnxArtifact:
    return OnnxArtifact.from_dict(json.loads((folder / "artifact.json").read_text()))


def _check(folder: Path) -> dict[str, Any]:
    return {"passed": check_artifact(folder / "onnx", _artifact(folder), CheckOptions()).passed}


def _compare(folder: Path) -> dict[str, Any]:
    options = JudgeOptions(batch_sizes=(1, 3), factory=_factory(), input_spec=INPUT_SPEC)
    report = compare_artifact(folder / WEIGHTS, folder / "onnx", _artifact(folder), options)
    worst = max(comparison.mae or 0.0 for comparison in report.comparisons)
    return {"passed": report.passed, "mae": worst, "failures": report.failures}


def _log(folder: Path) -> dict[str, Any]:
    import mlflow

    mlflow.set_experiment(OF_EXPERIMENT)
    tags = {
        "onnx_release.factory": FACTORY,
        "onnx_release.factory_kwargs": json.dumps(FACTORY_KWARGS),
        "onnx_release.input_spec": json.dumps(INPUT_SPEC),
    }
    with mlflow.start_run(run_name="big", tags=tags) as run:
        mlflow.log_artifact(str(folder / WEIGHTS), "checkpoints")
    return {"run_id": run.info.run_id}


_STEPS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "make": _make, "export": _export, "check": _check, "compare": _compare, "log": _log,
}  # fmt: skip


def _main(step: str, folder: str) -> None:
    imports_bytes, began = _peak_bytes(), time.perf_counter()
    found = _STEPS[step](Path(folder))
    wall_s = time.perf_counter() - began
    print(json.dumps(found | {"wall_s": wall_s, "peak_bytes": _peak_bytes() - imports_bytes}))


def _peak_bytes() -> int:
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    _main(*sys.argv[1:])
