"""What the README tells a stranger to type exists."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch

from airflow_onnx import defaults
from airflow_onnx.provider import get_provider_info
from stack.context import Context
from stack.credentials import Credentials
from stack.layout import Layout
from stack.ports import Ports
from stack.setup import client_environment

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))))
def test_every_make_target_is_there(target: str) -> None:
    assert re.search(rf"^{target}:.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text) + re.findall(r' src(?:set)?="([^"]+)"', text)
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []


def test_the_pictures_need_chromium_and_the_message_names_its_package() -> None:
    argv, environment = [sys.executable, "-m", "docs.screenshots"], {**os.environ, "CHROMIUM": "/missing/chromium"}
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "/missing/chromium is missing. Install it (apt-get install chromium)" in done.stderr


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_every_python_block_parses(block: str) -> None:
    ast.parse(block)


def _block_with(text: str) -> str:
    (block,) = (found for found in re.findall(r"```(?:python|bash)\n(.*?)```", README, re.DOTALL) if text in found)
    return str(block)


def test_a_model_that_is_logged_as_described_is_served_by_pyfunc(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, batch = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.GELU()), torch.randn(3, 8)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        experiment = mlflow.create_experiment("readme", artifact_location=tmp_path.as_uri())
        with mlflow.start_run(experiment_id=experiment) as run:
            exec(_block_with("infer_signature"), {"model": model, "batch": batch})
        (logged,) = mlflow.MlflowClient().get_run(run.info.run_id).outputs.model_outputs
        served = mlflow.pyfunc.load_model(f"models:/{logged.model_id}").predict(batch.numpy())
    finally:
        mlflow.set_tracking_uri(None)
    assert np.array_equal(served, model(batch).detach().numpy())


def test_the_clients_variables_are_those_of_the_stack(tmp_path: Path) -> None:
    named = re.findall(r"(\w+)=", _block_with("export MLFLOW_TRACKING_URI"))
    context = Context(Layout(tmp_path), Ports(), Credentials.generate())
    assert set(named) == {name for name in client_environment(context) if not name.startswith("AIRFLOW_")}


@pytest.mark.parametrize("dag_id", ["release_onnx", "watch_training"])
def test_the_parameters_page_lists_every_parameter(dag_id: str) -> None:
    params = runpy.run_path(str(ROOT / "dags" / f"{dag_id}.py"))["dag"].params
    page = (ROOT / "docs" / "parameters.md").read_text()
    section = page.split(f"## `{dag_id}`\n")[1].split("\n## ")[0]
    rows = "\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `"))
    assert set(re.findall(r"`(\w+)`", rows)) == set(params)


def test_the_parameters_page_names_the_defaults() -> None:
    page = (ROOT / "docs" / "parameters.md").read_text()
    assert f"`{defaults.ALIAS}`" in page


def test_the_operations_page_names_every_option() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    options = get_provider_info()["config"]["onnx_release"]["options"]
    assert [name for name in options if name.startswith("watch_") and f"`{name}`" not in page] == []
