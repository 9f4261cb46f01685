"""Findings about a trained model, with their corrections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from onnx_release.errors import Refused
from onnx_release.export.diagnostics import refusal_finding
from onnx_release.export.export_model import ExportStepOptions, export_trained
from onnx_release.records import Finding
from tests.core.conftest import Exported
from tests.core.models import DecidesByValue, OneOutput, TwoHeads, image, save

PICKLE: dict[str, Any] = {"serialization_format": "pickle"}
UNNAMED = ModelSignature(
    Schema([TensorSpec(np.dtype("float32"), (-1, 3, 8, 8))]), Schema([TensorSpec(np.dtype("float32"), (-1, 2))])
)


def _codes(findings: tuple[Finding, ...]) -> dict[str, str]:
    return {finding.code: finding.severity for finding in findings}


@pytest.mark.parametrize(
    ("logged", "codes"),
    [
        ({}, {}),
        ({"signature": UNNAMED}, {"unnamed_input": "info", "unnamed_output": "info"}),
        ({"input_example": None, "signature": UNNAMED}, {"no_example": "warning"}),
    ],
)
def test_missing_names_and_examples_are_findings_with_a_fix(
    log_and_export: Callable[..., Exported], logged: dict[str, Any], codes: dict[str, str]
) -> None:
    model = OneOutput() if logged else TwoHeads()
    findings = log_and_export(model.eval(), **logged).artifact.findings
    assert codes.items() <= _codes(findings).items()
    assert bool(findings) == bool(codes)
    assert all(finding.fix for finding in findings)


def test_double_precision_is_a_warning(tmp_path: Path) -> None:
    spec = Schema([TensorSpec(np.dtype("float64"), (-1, 3, 8, 8), "image")])
    trained = save(
        OneOutput().double().eval(),
        tmp_path / "trained",
        serialization_format="pickle",
        signature=ModelSignature(spec, Schema([TensorSpec(np.dtype("float64"), (-1, 2), "positions")])),
        input_example=image(4).astype(np.float64),
    )
    artifact = export_trained(trained, tmp_path / "out", ExportStepOptions(device="cpu", allow_pickle=True))
    (finding,) = artifact.findings
    assert (finding.code, finding.severity) == ("unsupported_dtype", "warning")
    assert "model.float()" in finding.fix


@pytest.mark.parametrize(
    ("model", "logged", "code", "fix"),
    [
        (TwoHeads(), {"serialization_format": "pt2", "input_example": image(1)}, "frozen_batch", "at least 2 sam"),
        (TwoHeads().train(), {"serialization_format": "pt2"}, "train_mode", "model.eval()"),
        (DecidesByValue(), PICKLE, "data_dependent", "torch.where and torch.cond"),
        (TwoHeads(), PICKLE | {"signature": None, "input_example": None}, "no_signature", "TensorSpec"),
    ],
)  # fmt: skip
def test_a_refusal_is_a_finding_with_its_code_and_action(
    log_and_export: Callable[..., Exported], model: Any, logged: dict[str, Any], code: str, fix: str
) -> None:
    if logged["serialization_format"] == "pt2" and code != "train_mode":
        model = model.eval()
    with pytest.raises(Refused) as refusal:
        log_and_export(model, **logged)
    finding = refusal_finding(refusal.value)
    assert (finding.severity, finding.code) == ("error", code)
    assert fix in finding.fix


def test_a_pickle_that_is_not_allowed_is_a_finding(trained_pickle: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refusal:
        export_trained(trained_pickle, tmp_path / "out", ExportStepOptions(device="cpu"))
    assert refusal_finding(refusal.value).code == "pickle"


def test_an_input_that_the_signature_renames_is_a_finding(tmp_path: Path) -> None:
    renamed = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, 3, 8, 8), "picture")]),
        Schema([TensorSpec(np.dtype("float32"), (-1, 2), "positions")]),
    )
    trained = save(OneOutput().eval(), tmp_path / "trained", signature=renamed)
    artifact = export_trained(trained, tmp_path / "out", ExportStepOptions(device="cpu"))
    assert [spec.name for spec in artifact.inputs] == ["picture"]
    (finding,) = artifact.findings
    assert finding.code == "renamed_inputs"
    assert "'image' is 'picture'" in finding.message
    assert "(-1, 3, 8, 8), 'image')" in finding.fix
