"""What Airflow reads of the installed package."""

from __future__ import annotations

import json
from importlib import import_module, resources
from typing import Any

import jsonschema
import pytest

from airflow_onnx.links import ModelVersionLink, ObjectLink, TrainingRunLink
from airflow_onnx.plugin import AirflowOnnxPlugin
from airflow_onnx.provider import get_provider_info


def imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def test_the_provider_fits_airflows_schema() -> None:
    schema = json.loads(resources.files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)


def test_the_connection_type_is_the_hooks_own() -> None:
    (connection,) = get_provider_info()["connection-types"]
    hook = imported(connection["hook-class-name"])
    assert (hook.conn_type, hook.hook_name) == (connection["connection-type"], connection["hook-name"])


@pytest.mark.parametrize("link", [TrainingRunLink, ModelVersionLink, ObjectLink])
def test_every_link_is_registered_both_ways(link: type) -> None:
    # The API server must know a link's class to read a DAG that has it.
    assert link in [imported(path) for path in get_provider_info()["extra-links"]]
    assert link in [type(registered) for registered in AirflowOnnxPlugin.operator_extra_links]


def test_the_defaults_are_what_airflow_can_format() -> None:
    # Airflow passes each default through str.format when it starts: a lone brace would stop every command.
    options = get_provider_info()["config"]["onnx_release"]["options"]
    defaults = {name: option["default"] for name, option in options.items() if option["default"] is not None}
    assert {name: default.format() for name, default in defaults.items()} == defaults


def test_the_command_line_offers_the_plan() -> None:
    (function,) = get_provider_info()["cli"]
    (group,) = imported(function)()
    assert [command.name for command in group.subcommands] == ["plan"]
