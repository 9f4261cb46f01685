"""The ways of docs/serving.md that run here: MLflow, bare ONNX Runtime, and the ORT format."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.core.conftest import Exported
from tests.core.models import image

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


@pytest.fixture
def churn(released: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the page's commands, in the working directory."""
    shutil.copytree(released.folder, tmp_path / "churn")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "churn"


def test_the_three_ways_give_the_same_numbers(churn: Path) -> None:
    batch = image(3)
    expected = _run("churn/model.onnx", batch)["outputs"][0]
    (command,) = re.findall(r"python (-m onnxruntime\.tools\.convert.*)", PAGE)
    subprocess.run([sys.executable, *command.split()], check=True, capture_output=True)
    of_mobile = _run("churn/model.ort", batch)["session"].run(None, {"image": batch})[0]
    np.testing.assert_allclose(of_mobile, expected, rtol=1e-5, atol=1e-6)
    of_mlflow = _run("mlflow.pyfunc", batch, str(churn))["outputs"]
    np.testing.assert_array_equal(next(iter(of_mlflow.values())), expected)


def _run(text: str, batch: object, model: str = "") -> dict[str, Any]:
    """Run the block of the page that contains a text, and return its names."""
    block = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if text in block)
    names: dict[str, Any] = {"batch": batch}
    exec(block.replace("models:/churn-onnx@candidate", model).replace('"x"', '"image"'), names)
    return names
