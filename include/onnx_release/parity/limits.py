"""Limits of each output, after its own and its dtype's overrides."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from onnx_release.errors import ParityRefused
from onnx_release.limits import DTYPE_LIMITS, OutputLimits, ParityLimits
from onnx_release.records import ReleaseReport, TensorSpec

_NAMES = tuple(OutputLimits.model_fields)


def resolve_limits(limits: ParityLimits, output: str, dtype: str) -> OutputLimits:
    """Return the limits of one output, in the order of `ParityLimits`."""
    values: dict[str, float | None] = {name: getattr(limits, name) for name in _NAMES}
    for entry in (DTYPE_LIMITS.get(dtype, {}), limits.per_dtype.get(dtype, {}), limits.per_output.get(output, {})):
        values |= entry
    return OutputLimits(**values)


def limits_of_release(report: ReleaseReport) -> ParityLimits:
    """Return the limits that a release was compared with, the defaults without a comparison."""
    benchmark = report.benchmark
    return ParityLimits.from_dict(benchmark.parity.limits) if benchmark else ParityLimits()


def limits_for_weights(limits: ParityLimits, dtypes: Collection[str]) -> ParityLimits:
    """Return the limits for a model with weights of half precision: its wider outputs have the error of its weights.

    Args:
        limits: the limits of the release. An entry for a dtype or an output wins.
        dtypes: the dtypes of the model's float weights.
    """
    dtype = next((half for half in ("bfloat16", "float16") if half in dtypes), None)
    if dtype is None:
        return limits
    wider = {wide: DTYPE_LIMITS[dtype] | limits.per_dtype.get(wide, {}) for wide in ("float32", "float64")}
    return limits.replace(per_dtype=limits.per_dtype | wider)


def require_limits(limits: ParityLimits, outputs: Sequence[TensorSpec]) -> None:
    """Raise for limits that cannot be applied to these outputs.

    Raises:
        ParityRefused: with every mistake: an override of an unknown output or dtype, an unknown limit, a limit out of
            its bounds, an output without any limit.
    """
    wrong = [*_mistakes(limits, [spec.name for spec in outputs]), *_wrong_uncertainties(limits, outputs)]
    for spec in outputs if not wrong else ():
        resolved = resolve_limits(limits, spec.name, spec.dtype)
        # `agreement_min` is the only limit on integers and booleans, and does not apply to floats.
        applied = (
            set(_NAMES) - {"agreement_min", "uncertainty_max"} if spec.dtype.startswith("float") else {"agreement_min"}
        )
        if all(getattr(resolved, name) is None for name in applied):
            wrong.append(f"output '{spec.name}' is left without any limit")
    if wrong:
        raise ParityRefused(
            "The parity limits",
            f"cannot be applied: {'; '.join(wrong)}",
            "Correct the parity parameters of the release, or the run's tag that names an output.",
            code="wrong_limits",
        )


def _mistakes(limits: ParityLimits, outputs: list[str]) -> Iterator[str]:
    for name in limits.per_output:
        if name not in outputs:
            yield f"per_output has '{name}', and the outputs are {outputs}"
    for name in limits.per_dtype:
        known = False
        with contextlib.suppress(TypeError):
            known = np.dtype(name).name == name
        if not known:
            yield f"per_dtype has '{name}', which is not a dtype"
    entries: dict[str, Mapping[str, float | None]] = {"": {name: getattr(limits, name) for name in _NAMES}}
    entries |= {f"per_output['{name}'] ": entry for name, entry in limits.per_output.items()}
    entries |= {f"per_dtype['{name}'] ": entry for name, entry in limits.per_dtype.items()}
    for where, entry in entries.items():
        for name, value in entry.items():
            if name not in _NAMES:
                yield f"{where}has '{name}', and the limits are {list(_NAMES)}"
            elif value is not None and (bounds := _exceeded_bounds(name, value)):
                yield f"{where}{name} is {value}, not {bounds}"


def _wrong_uncertainties(limits: ParityLimits, outputs: Sequence[TensorSpec]) -> Iterator[str]:
    floats = [spec.name for spec in outputs if spec.dtype.startswith("float")]
    for pair in limits.uncertainty_of.items():
        for name in pair:
            if name not in floats:
                yield f"uncertainty_of has '{name}', and the outputs of floats are {floats}"
        if pair[0] == pair[1]:
            yield f"uncertainty_of names '{pair[0]}' as its own uncertainty"


def _exceeded_bounds(name: str, value: float) -> str | None:
    """Return the bounds of a limit as text when the value is outside them."""
    keywords = cast("dict[str, Any]", OutputLimits.model_fields[name].json_schema_extra)
    above, least, most = (keywords.get(key) for key in ("exclusiveMinimum", "minimum", "maximum"))
    inside = (above is None or value > above) and (least is None or value >= least) and (most is None or value <= most)
    if inside and math.isfinite(value):
        return None
    lower = f"above {above}" if above is not None else f"from {least}"
    return f"a number {lower}" if most is None else f"a number {lower} to {most}"
