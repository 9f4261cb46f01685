"""Checks of all parameters of a release together, before its first work.

Airflow has compared each value with the schema of the form. These are the rules between parameters, the rules inside
JSON objects, and the reserved names.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, cast

from pydantic import Field

from airflow_onnx import params, validation
from airflow_onnx.release_params import release_params
from airflow_onnx.tracking.promotion_policy import PromotionPolicy
from onnx_release.errors import ParameterRefused, Refused
from onnx_release.limits import PRECISION_LIMITS, OutputLimits, ParityLimits
from onnx_release.records import Precision
from onnx_release.records.base import Record
from onnx_release.training_runs.names import validate_model_name

Parameters = Mapping[str, Any]

# Parameters travel through Airflow's database, tags and addresses.
_CHARACTERS_MAX = 100_000
# The bounds of a JSON schema: their words, and the comparison that they stand for.
_BOUNDS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "minimum": ("from", operator.ge),
    "exclusiveMinimum": ("above", operator.gt),
    "maximum": ("up to", operator.le),
}


class _Kinds(Record):
    """Kinds of the JSON values that no other record has."""

    factory_kwargs: dict[str, Any] = Field(default_factory=dict)
    precision_limits: dict[str, dict[str, Any]] = Field(default_factory=dict)
    allowed_domains: tuple[str, ...] = ()
    tune_precisions: tuple[Precision, ...] = (Precision.EXACT,)


def problems(parameters: Parameters) -> list[Refused]:
    """Return a refusal for each wrong parameter.

    :param parameters: values by name. A missing name is not checked.
    """
    known = release_params()
    # Airflow accepts every name, so a typing error would leave a limit at its default.
    found: list[Refused] = [params.unknown_name(name, known) for name in parameters if name not in known]
    for check in _checks(parameters):
        try:
            check()
        except Refused as error:
            found.append(error)
    return found


def _checks(parameters: Parameters) -> Iterator[Callable[[], object]]:
    yield from (partial(_require_size, name, value) for name, value in parameters.items())
    names = {
        "model_name": validate_model_name,
        "bucket": validation.validate_bucket,
        "prefix": validation.validate_prefix,
    }
    for name, validate in names.items():
        if parameters.get(name):
            yield partial(validate, parameters[name])
    for record in (ParityLimits, _Kinds):
        for name in record.model_fields:
            yield partial(_require_kind, record, name, parameters.get(name))
    for name in ("per_output", "per_dtype"):
        yield partial(_require_limits, name, parameters.get(name), OutputLimits)
    yield partial(_require_precision_limits, parameters.get("precision_limits"))
    yield partial(_require_input_spec, parameters.get("input_spec"))
    yield partial(_require_layouts, parameters.get("serving_layouts"))
    yield partial(_require_runtimes, parameters.get("target_runtimes"))
    yield partial(_require_destination, parameters)
    if "bucket" in parameters:
        yield partial(_require_bucket, parameters["bucket"])


def _require_size(name: str, value: Any) -> None:
    size = len(value) if isinstance(value, str) else len(json.dumps(value, default=str))
    if size > _CHARACTERS_MAX:
        problem, action = f"has {size} characters", f"Use at most {_CHARACTERS_MAX}."
        raise ParameterRefused(f"The parameter {name!r:.80}", problem, action, code="wrong_parameter")


def _require_kind(record: type[Record], name: str, value: Any) -> None:
    try:
        params.settings(record, {name: value})
    except Refused as error:
        raise ParameterRefused(
            f"The parameter '{name}'", error.problem, "Correct it.", code="wrong_parameter"
        ) from error


def _require_limits(name: str, entries: Any, limits: type[Record]) -> None:
    """Refuse an unknown limit of an output, a dtype or a precision.

    :param entries: limits by output, dtype or precision. Another kind of value is refused by `_require_kind`.
    """
    for key, entry in entries.items() if isinstance(entries, dict) else ():
        for limit in entry if isinstance(entry, dict) else ():
            if limit not in limits.model_fields:
                problem = f"has the unknown limit {limit!r:.80} for {key!r:.80}"
                action = f"Use {', '.join(limits.model_fields)}."
                raise ParameterRefused(f"The parameter '{name}'", problem, action, code="wrong_parameter")
            if limit in OutputLimits.model_fields and (bounds := _broken_bounds(limit, entry[limit])):
                problem = f"has {limit} = {entry[limit]!r:.80} for {key!r:.80}"
                raise ParameterRefused(f"The parameter '{name}'", problem, f"Use {bounds}.", code="wrong_parameter")


def _broken_bounds(limit: str, value: Any) -> str:
    """Return the bounds of a limit as text if a number is out of them. The form checks only the outer parameters."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    found: Mapping[str, Any] = {**cast("dict[str, Any]", OutputLimits.model_fields[limit].json_schema_extra or {})}
    bounds = {text: found[name] for name, (text, _) in _BOUNDS.items() if name in found}
    keeps = all(_BOUNDS[name][1](value, found[name]) for name in _BOUNDS if name in found)
    return "" if keeps and math.isfinite(value) else f"a number {' '.join(f'{t} {b}' for t, b in bounds.items())}"


def _require_precision_limits(entries: Any) -> None:
    if not isinstance(entries, dict):
        return
    if unknown := sorted(set(entries) - set(PRECISION_LIMITS)):
        listed, known = ", ".join(map(repr, unknown)), " or ".join(PRECISION_LIMITS)
        problem = f"has the unknown precision {listed:.200}"
        raise ParameterRefused("The parameter 'precision_limits'", problem, f"Use {known}.", code="unknown_precision")
    _require_limits("precision_limits", entries, ParityLimits)
    for entry in entries.values():
        for name, value in entry.items() if isinstance(entry, dict) else ():
            _require_kind(ParityLimits, name, value)


def _require_input_spec(value: Any) -> None:
    # Imported here because the other tasks of this package do not need it.
    from onnx_release.trained.input_spec import parse_input_spec

    parse_input_spec(value)


def _require_layouts(value: Any) -> None:
    from onnx_release.serving.layout_names import require_layouts

    require_layouts(value if isinstance(value, list | tuple) else [value] if value else [])


def _require_runtimes(value: Any) -> None:
    from onnx_release.serving.runtime_environment import require_versions

    require_versions(value if isinstance(value, list | tuple) else [value] if value else [])


def _require_destination(parameters: Parameters) -> None:
    """Refuse an alias or a stage that the model could not have at the end."""
    alias, stage = parameters.get("alias"), str(parameters.get("stage") or "")
    tuned = parameters.get("tune_precisions") if parameters.get("tune") else None
    precisions = [name for name in tuned or () if name in list(Precision)] or [Precision.EXACT]
    for precision in precisions:
        if alias:
            policy = {name: str(parameters.get(name) or "") for name in PromotionPolicy.model_fields}
            PromotionPolicy.read(policy).aliases(precision)
        # Tuning may also end with an exact model: the stage is wrong only if it cannot.
        if Precision.EXACT not in precisions:
            validation.stage_for(stage, precision)


def _require_bucket(bucket: Any) -> None:
    if not bucket:
        raise ParameterRefused(
            "The bucket for the released model",
            "is not set",
            "Set the parameter 'bucket' of this release, the argument 'bucket' of release_dag, or the option "
            "[onnx_release] bucket.",
            code="missing_value",
        )
