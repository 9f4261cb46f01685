"""Provider metadata: schema, links, connection type and options."""

from __future__ import annotations

import json
from importlib import import_module, resources
from typing import Any, get_type_hints

import jsonschema
import pytest
from airflow.configuration import AirflowConfigParser

from airflow_onnx.deployment import settings
from airflow_onnx.links import ModelVersionLink, ObjectLink, TrainingRunLink
from airflow_onnx.plugin import AirflowOnnxPlugin
from airflow_onnx.provider import get_provider_info


def imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _schema() -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(resources.files("airflow").joinpath("provider_info.schema.json").read_text())
    return schema


def _options() -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = get_provider_info()["config"]["onnx_release"]["options"]
    return options


def test_the_metadata_fits_airflows_schema() -> None:
    jsonschema.validate(get_provider_info(), _schema())


def test_airflows_schema_refuses_an_unknown_option_type() -> None:
    info = get_provider_info()
    info["config"]["onnx_release"]["options"]["allow_pickle"]["type"] = "bool"
    with pytest.raises(jsonschema.ValidationError, match="'bool' is not one of"):
        jsonschema.validate(info, _schema())


@pytest.mark.parametrize("name", sorted(_options()))
def test_an_option_has_the_type_that_its_reader_returns(name: str) -> None:
    # Airflow has no type for JSON and paths: these are strings.
    types = {bool: "boolean", int: "integer", int | None: "integer", float: "float"}
    assert _options()[name]["type"] == types.get(get_type_hints(getattr(settings, name))["return"], "string")


# An option without a default has a value that depends on the executor: Airflow's parser never sees one.
@pytest.mark.parametrize(
    "name",
    sorted(name for name, one in _options().items() if one["type"] != "string" and one["default"] is not None),
)
def test_a_default_can_be_read_as_its_type(name: str) -> None:
    option = _options()[name]
    parser = AirflowConfigParser(default_config=f"[onnx_release]\n{name} = {option['default']}\n")
    readers = {"boolean": parser.getboolean, "integer": parser.getint, "float": parser.getfloat}
    kinds = {"boolean": bool, "integer": int, "float": float}
    assert isinstance(readers[option["type"]]("onnx_release", name), kinds[option["type"]])


@pytest.mark.parametrize("connection", get_provider_info()["connection-types"], ids=lambda one: one["hook-name"])
def test_a_connection_type_matches_its_hook(connection: dict[str, Any]) -> None:
    hook = imported(connection["hook-class-name"])
    assert (hook.conn_type, hook.hook_name) == (connection["connection-type"], connection["hook-name"])


@pytest.mark.parametrize("link", [TrainingRunLink, ModelVersionLink, ObjectLink])
def test_every_link_is_registered_both_ways(link: type) -> None:
    # The API server must know a link's class to read a DAG that has it.
    assert link in [imported(path) for path in get_provider_info()["extra-links"]]
    assert link in [type(registered) for registered in AirflowOnnxPlugin.operator_extra_links]


def test_airflow_can_format_the_defaults() -> None:
    # Airflow passes each default through str.format when it starts: a lone brace would stop every command.
    defaults = {name: option["default"] for name, option in _options().items() if option["default"] is not None}
    assert {name: default.format() for name, default in defaults.items()} == defaults


def test_the_command_line_offers_plan_check_and_gc() -> None:
    (function,) = get_provider_info()["cli"]
    (group,) = imported(function)()
    assert [command.name for command in group.subcommands] == ["plan", "check", "gc", "retire"]
