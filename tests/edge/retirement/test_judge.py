"""Decisions about versions, without a server."""

from __future__ import annotations

import pytest

from airflow_onnx.retirement.judge import Judge, is_release_folder
from airflow_onnx.retirement.records import Fate, Retirement, RetirementRules
from airflow_onnx.retirement.table import lines
from onnx_release.training_runs import tags
from onnx_release.training_runs.records import ModelVersionEntry, RegisteredModel
from tests.refusals import refused

RUN, SHA256 = "0" * 32, "a" * 64
SOURCE = f"s3://models/team/net/{RUN}/{SHA256[:16]}"


def fate(source: str = SOURCE, name: str = "net", **model_tags: str) -> Fate:
    """Return the decision about one old version."""
    rules = RetirementRules(keep_newest=0)
    entry = ModelVersionEntry(
        name=name,
        version=1, created_at_ms=0, run_id=RUN, description="", tags={tags.VERSION_SHA256: SHA256},
        source=source, status="READY",
    )  # fmt: skip
    model = RegisteredModel(name=name, aliases={}, tags=model_tags)
    (found,) = Judge(rules=rules, bucket="models", prefix="team", now_s=1e9).fates(model, [entry])
    return found


def test_a_model_whose_alias_log_is_damaged_loses_no_version() -> None:
    assert fate().retires
    damaged = fate(**{f"{tags.ALIAS_LOG}.0": '[{"alias": "champion", "to_ver'})
    assert (damaged.retires, damaged.reason) == (False, "the alias log of the model cannot be read")
    # A move at an unknown time counts as one of now.
    text = '[{"alias": "x", "from_version": null, "to_version": 1, "by": "a", "at": "soon", "why": ""}]'
    assert "before" in fate(**{f"{tags.ALIAS_LOG}.0": text}).reason


@pytest.mark.parametrize("name", ["../x", "a/b", "", "\x00", "ä", "-", "n" * 129, "net'; DROP"])
def test_no_name_becomes_a_part_of_a_path_or_a_filter(name: str) -> None:
    assert not fate(f"s3://models/team/{name}/{RUN}/{SHA256[:16]}", name).retires


@pytest.mark.parametrize(
    "source",
    [
        SOURCE.replace("team", "other"), SOURCE.replace("models", "other"), f"{SOURCE}/../x", f"{SOURCE}x",
        SOURCE.replace("s3:", "s3a:"), SOURCE.rpartition("/")[0], "", "models:/net/1", SOURCE.replace("net", "net2"),
    ],
)  # fmt: skip
def test_only_the_folder_that_a_release_gives_is_one(source: str) -> None:
    assert is_release_folder(f"{SOURCE}/", "models", "team", "net", RUN, SHA256)
    assert not is_release_folder(source, "models", "team", "net", RUN, SHA256)


@pytest.mark.parametrize(
    "rule", [{"min_age_days": 0}, {"min_age_days": float("nan")}, {"keep_newest": 0.5}, {"models": "net"}, {"x": 1}]
)
def test_a_wrong_rule_is_refused(rule: dict[str, object]) -> None:
    with refused("wrong_field"):
        RetirementRules.from_dict(rule)


def test_hostile_names_are_one_line_of_the_table() -> None:
    row = Fate(model="\x1b[31m\nx", version=1, retires=True, reason="a\nb")
    found = Retirement(place="s3://b", dry_run=True, rules=RetirementRules(), versions=(row,))
    text = list(lines(found))
    assert (len(text), "\x1b" in "".join(text), "\n" in "".join(text)) == (3, False, False)
