"""Readers of rendered templates."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_onnx import params
from onnx_release.errors import ParameterRefused
from onnx_release.limits import LatencyBudget, ParityLimits
from onnx_release.records import OnnxArtifact
from tests.refusals import refused


def test_settings_are_read_from_json_and_from_values() -> None:
    read = params.settings(ParityLimits, {"mae_max": "1e-06", "max_abs": "null", "rtol": 0.1, "per_output": "{}"})
    assert read == ParityLimits(mae_max=1e-6, rtol=0.1)


def test_an_empty_field_is_none_or_its_default() -> None:
    empty = {"mae_max": None, "sqnr_min_db": "null", "per_output": None, "uncertainty_of": "null"}
    assert params.settings(ParityLimits, empty) == ParityLimits(mae_max=None, sqnr_min_db=None)


def test_text_is_read_with_and_without_json_quotes() -> None:
    assert params.settings(LatencyBudget, {"on_miss": '"warn"'}).on_miss == "warn"
    assert params.settings(LatencyBudget, {"on_miss": "warn"}).on_miss == "warn"


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"on_miss": "ignore"}, "on_miss"),
        ({"batch_size": "1.5"}, "batch_size"),
        ({"speedup_min": "fast"}, "speedup_min"),
        ({"speed": 1}, "speed"),
        ({"batch_size": True}, "batch_size"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(fields: dict[str, Any], word: str) -> None:
    with refused("wrong_field", word):
        params.settings(LatencyBudget, fields)


@pytest.mark.parametrize("argument", ["[]", "8", '["8"]', "[0]", "[5000]", "[1.5]", "[null]", "x", None])
def test_wrong_batch_sizes_are_refused_by_name(argument: Any) -> None:
    with pytest.raises(ParameterRefused, match="batch_sizes") as caught:
        params.integers(argument, "batch_sizes", 1, 4096)
    assert caught.value.code in ("not_a_list", "not_in_range")


def test_batch_sizes_are_sorted_without_duplicates() -> None:
    assert params.integers("[8, 1, 8]", "batch_sizes", 1, 4096) == (1, 8)


@pytest.mark.parametrize("argument", [None, "", "null"])
def test_an_empty_opset_is_none(argument: Any) -> None:
    assert params.optional_integer(argument, "opset", 18, 23) is None


@pytest.mark.parametrize("argument", ["17", 24, "true", "20.0"])
def test_an_opset_outside_the_limits_is_refused(argument: Any) -> None:
    with refused("not_in_range", "opset", "from 18 to 23"):
        params.optional_integer(argument, "opset", 18, 23)


def test_a_missing_record_names_the_task_to_clear() -> None:
    with refused("missing_record", "'export'"):
        params.record(OnnxArtifact, None, "export")


def test_a_forged_record_is_refused() -> None:
    with refused("wrong_field", "OnnxArtifact.evil"):
        params.record(OnnxArtifact, {"sha256": "x", "evil": 1}, "export")
