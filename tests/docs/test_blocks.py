"""Blocks of README and docs: they parse, their commands and options exist, and the DAG files make DAGs."""

from __future__ import annotations

import argparse
import ast
import configparser
import json
import re
import runpy
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import yaml
from airflow.cli import cli_parser
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

from airflow_onnx.cli.commands import get_commands
from airflow_onnx.deployment.options import OPTIONS
from onnx_release.cli.main import parser as command_line
from tests.docs.blocks import ROOT, Block, blocks, commands

PYTHON = blocks("python")
SHELL = blocks("bash", "sh")
TARGETS = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
# Programs of the reader's machine whose arguments are not checked.
FOREIGN = {
    "aws", "cd", "curl", "docker", "export", "jq", "kubectl", "mc", "model_signing", "nox", "openssl", "pip", "python3",
    "sha256sum", "source", "tritonserver",
}  # fmt: skip


def _makes_a_dag(block: Block) -> bool:
    return bool(re.search(r"\b(release_dag|watch_dag|DAG)\(", block.text))


def test_the_pages_have_blocks() -> None:
    assert len(PYTHON) > 15
    assert len(SHELL) > 20
    assert sum(map(_makes_a_dag, PYTHON)) > 6


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_parses(block: Block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", [block for block in PYTHON if _makes_a_dag(block)], ids=str)
def test_a_dag_file_makes_its_dags(block: Block) -> None:
    found: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), found)
    dags = [value for value in found.values() if isinstance(value, DAG)]
    assert dags
    assert all(dag.tasks for dag in dags)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_shell_parses_it(block: Block) -> None:
    # A placeholder such as <run id> is no redirection.
    text = re.sub(r"<[a-zA-Z][^<>]*>", "X", block.text)
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_exists_with_its_options(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The command onnx-release refuses a file that does not exist.
    monkeypatch.chdir(tmp_path)
    for program, *arguments in commands(block):
        name = Path(program).name
        if name == "make":
            assert {word for word in arguments if "=" not in word} <= set(TARGETS)
        elif name == "airflow":
            _parse_airflow(arguments)
        elif name == "onnx-release":
            for file in (word for word in arguments if re.fullmatch(r"\w+\.\w+", word)):
                Path(file).touch()
            _parse(command_line(), arguments)
        elif name == "python":
            assert _python_runs(arguments), arguments
        else:
            assert name in FOREIGN, f"Add {name} to FOREIGN if it is a program of the reader"


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_parses(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_parses(block: Block) -> None:
    assert yaml.safe_load(block.text)


@pytest.mark.parametrize("block", blocks("ini"), ids=str)
def test_configuration_has_known_options(block: Block) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(block.text)
    assert set(parser["onnx_release"]) <= set(OPTIONS)


def test_every_variable_of_an_option_exists() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = {name for page in pages for name in re.findall(r"AIRFLOW__ONNX_RELEASE__([A-Z_]+)", page.read_text())}
    assert named - {option.upper() for option in OPTIONS} - {"NAME", ""} == set()


def test_the_first_release_logs_a_model_that_can_be_served(tmp_path: Path) -> None:
    train, log = _block_with("optimizer.step()"), _block_with("infer_signature")
    lines = [line.strip() for line in train.text.splitlines()]
    assert [line for line in log.text.splitlines() if line.strip() not in lines] == []
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        mlflow.create_experiment("churn-nightly", artifact_location=tmp_path.as_uri())
        found: dict[str, Any] = {}
        exec(train.text, found)
        (logged,) = mlflow.MlflowClient().get_run(found["run"].info.run_id).outputs.model_outputs
        batch = found["batch"]
        served = mlflow.pyfunc.load_model(f"models:/{logged.model_id}").predict(batch.numpy())
        assert np.array_equal(served, found["model"](batch).detach().numpy())
    finally:
        mlflow.set_tracking_uri(None)


def _block_with(words: str) -> Block:
    """Return the shortest Python block that has the words."""
    return min((block for block in PYTHON if words in block.text), key=lambda block: len(block.text))


def _python_runs(arguments: list[str]) -> bool:
    if arguments[0] == "-c":
        return bool(ast.parse(arguments[1]))
    if arguments[0] == "-m":
        return find_spec(arguments[1]) is not None
    # A file of the reader, which the page shows.
    return (ROOT / arguments[0]).exists() or arguments[0] == "train_churn.py"


@cache
def _airflow_parser() -> argparse.ArgumentParser:
    return cli_parser.get_parser()


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    try:
        return parser.parse_args(arguments)
    except SystemExit as error:
        # The help of a command is a success.
        if error.code == 0:
            return argparse.Namespace()
        raise AssertionError(f"{parser.prog} {' '.join(arguments)}") from error


def _parse_airflow(arguments: list[str]) -> None:
    if arguments[0] == "celery":
        # Its provider is only in the image of docker-compose.yaml.
        return
    if arguments[0] == "onnx-release":
        parser = argparse.ArgumentParser()
        cli_parser._add_command(parser.add_subparsers(), get_commands()[0])
    else:
        parser = _airflow_parser()
    parsed = _parse(parser, arguments)
    conf = getattr(parsed, "conf", None) or getattr(parsed, "dag_run_conf", None)
    if conf:
        _check_conf(parsed.dag_id, conf)


def _check_conf(dag_id: str, conf: str) -> None:
    """Check a conf against the form of its DAG, with a value in place of each placeholder."""
    values = json.loads(re.sub(r"<(run )?id>", "0" * 32, conf))
    form = _dags()[dag_id].params
    assert set(values) <= set(form)
    form.deep_merge(values).validate()


@cache
def _dags() -> dict[str, Any]:
    """Return the DAGs of `dags/` and of the pages, as Airflow's API server has them."""
    found: list[Any] = [runpy.run_path(str(path))["dag"] for path in (ROOT / "dags").glob("*.py")]
    for block in filter(_makes_a_dag, PYTHON):
        names: dict[str, Any] = {}
        exec(compile(block.text, str(block), "exec"), names)
        found += [value for value in names.values() if isinstance(value, DAG)]
    return {dag.dag_id: DagSerialization.from_dict(DagSerialization.to_dict(dag)) for dag in found}
