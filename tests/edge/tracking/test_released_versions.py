"""Released versions of the registry: those with an alias, or all."""

from __future__ import annotations

import uuid

import pytest

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.tracking.released_versions import released_versions
from onnx_release.errors import ParameterRefused
from onnx_release.training_runs import tags


def test_versions_of_other_programs_are_left_out(hook: MlflowHook) -> None:
    name, other, sha256 = f"m-{uuid.uuid4().hex[:8]}", f"other-{uuid.uuid4().hex[:8]}", "a" * 64
    for model in (name, other):
        hook.client.create_registered_model(model)
    for found in (
        {tags.VERSION_SHA256: sha256},
        {},
        {tags.VERSION_SHA256: sha256, tags.VERSION_STATUS: "released"},
        {tags.VERSION_STATUS: "<b>released</b>"},
    ):
        hook.client.create_model_version(name, "s3://bucket/x", tags=found, await_creation_for=0)
    hook.client.create_model_version(other, "s3://bucket/y", await_creation_for=0)
    for alias, version in (("candidate", 4), ("nightly", 3), ("champion", 3), ("mine", 2)):
        hook.client.set_registered_model_alias(name, alias, str(version))
    with MlflowRest(hook.server) as rest:
        held = released_versions(rest, [name, other, name])
        every = released_versions(rest, [name], all_versions=True)
        everywhere = [one for one in released_versions(rest) if one.name in (name, other)]
        with pytest.raises(ParameterRefused):
            released_versions(rest, ["a' OR name LIKE '%"])
    assert [(one.version, one.aliases, one.sha256) for one in held] == [
        (4, ("candidate",), ""),
        (3, ("champion", "nightly"), sha256),
    ]
    assert [one.version for one in every] == [4, 3, 1]
    assert everywhere == held
    assert (every[1].label, every[1].source, every[1].status) == (f"{name} v3", "s3://bucket/x", "released")
