"""Routes of the watch as a parameter and as a field of the form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from airflow.sdk import Param

from airflow_onnx import defaults, params
from airflow_onnx.release_params import release_params
from onnx_release.training_runs.routes import Route, Routes

ROUTES_MAX = 200
PATTERN_MAX_CHARACTERS = 200
# The watch sets them.
_OF_THE_RUN = ("training_run_id", "model_uri")
# A route has the rules for the values of the form, not its texts.
_TEXTS = ("section", "title", "description_md", "examples", "pattern_words")


def read_routes(value: Any) -> Routes:
    """Read the routes of a parameter.

    :raises ParameterRefused: for a wrong field, with the number of the route.
    """
    given = params.value(value) or []
    params.require_valid("routes", routes_param(given))
    return Routes(tuple(Route.from_dict(one) for one in given))


def with_dag_id(routes: Iterable[Any], dag_id: str | None) -> list[Any]:
    """Return the routes with the DAG of the watch where one names none. Another value stays unchanged."""
    named = {"dag_id": dag_id} if dag_id else {}
    return [{**named, **route} if isinstance(route, dict) else route for route in routes]


def routes_param(default: list[Any], section: str = "") -> Param:
    """Return the field of the form, whose schema checks every route and every parameter of a release."""
    rules = {
        name: {key: rule for key, rule in param.schema.items() if key not in _TEXTS}
        for name, param in release_params().items()
        if name not in _OF_THE_RUN
    }
    route = {
        "type": "object",
        "required": ["experiment", "dag_id"],
        "additionalProperties": False,
        "properties": {
            "experiment": {"type": "string", "minLength": 1, "maxLength": PATTERN_MAX_CHARACTERS},
            "dag_id": {"type": "string", "pattern": defaults.DAG_ID.regexp},
            "params": {"type": "object", "additionalProperties": False, "properties": rules},
        },
    }
    return params.field(
        default, "array", section, "Routes",
        "The release DAG of each experiment, with parameters of its releases: "
        '[{"experiment": "radio-*", "dag_id": "release_radio", "params": {"alias": "nightly"}}]. The first match '
        "counts; * matches any text. An experiment without a match is not released.",
        items=route, maxItems=ROUTES_MAX,
    )  # fmt: skip
