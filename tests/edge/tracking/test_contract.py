"""Contract of a model: the differences that can break a client, and versions of other programs."""

from __future__ import annotations

import uuid

import mlflow
import numpy as np
import pytest
import torch
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.tracking.contract import contract_of
from onnx_release.records import Contract, TensorSpec
from onnx_release.training_runs import tags
from tests.edge.releasing import SIGNATURE
from tests.edge.tracking.reports import RELEASED, put_report
from tests.refusals import refused

X, Y, Z = ("x", "float32", ("batch", 8)), ("y", "float32", ("batch", 2)), ("z", "float32", ("batch", 1))


def contract(
    inputs: list[tuple[str, str, tuple[int | str, ...]]], outputs: list[tuple[str, str, tuple[int | str, ...]]]
) -> Contract:
    specs = [tuple(TensorSpec(name=n, dtype=d, shape=s) for n, d, s in side) for side in (inputs, outputs)]
    return Contract(inputs=specs[0], outputs=specs[1])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (contract([X], [Y]), contract([X], [Y])),
        (contract([X], [Y]), contract([("x", "float32", ("n", 8))], [("y", "float32", ("n", 2))])),
        (contract([X, Z], [Y]), contract([Z, X], [Y])),
        (contract([("x", "float32", (1, 8))], [("y", "float32", (1, 2))]), contract([X], [Y])),
        (contract([("x", "float32", ("batch", 16, 8))], [Y]), contract([("x", "float32", ("batch", "time", 8))], [Y])),
    ],
    ids=["equal", "dimension renamed", "inputs in another order", "fixed batch becomes free", "input becomes free"],
)
def test_a_client_of_the_old_model_can_use_the_new_one(old: Contract, new: Contract) -> None:
    assert old.differences(new) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (contract([X], [Y]), contract([("x", "float16", ("batch", 8))], [Y]), ["'x' has dtype float16, not float32"]),
        (contract([X], [Y]), contract([("x1", "float32", ("batch", 8))], [Y]), ["'x' is missing", "'x1' is new"]),
        (contract([X], [Y]), contract([X, Z], [Y]), ["input 'z' is new"]),
        (contract([X], [Y]), contract([X], [Y, Z]), ["output 'z' is new"]),
        (contract([X], [Y, Z]), contract([X], [Y]), ["output 'z' is missing"]),
        (contract([X], [Y, Z]), contract([X], [Z, Y]), ["order z, y, not y, z"]),
        (contract([X], [Y]), contract([("x", "float32", ("batch", 9))], [Y]), ["shape (batch, 9), not (batch, 8)"]),
        (contract([X], [Y]), contract([("x", "float32", ("batch", 8, 1))], [Y]), ["shape (batch, 8, 1)"]),
        (contract([X], [Y]), contract([("x", "float32", (4, 8))], [Y]), ["shape (4, 8), not (batch, 8)"]),
        (contract([X], [Y]), contract([X], [("y", "float32", ("batch", "boxes"))]), ["shape (batch, boxes)"]),
        (contract([X], [("y", "float32", (100, 2))]), contract([X], [Y]), ["shape (batch, 2), not (100, 2)"]),
        (contract([X], []), contract([X], [Y]), ["output 'y' is new"]),
        (contract([("X", "float32", ("batch", 8))], [Y]), contract([X], [Y]), ["'X' is missing", "'x' is new"]),
    ],
)  # fmt: skip
def test_a_difference_that_breaks_a_client_is_found(old: Contract, new: Contract, words: list[str]) -> None:
    found = "; ".join(old.differences(new))
    assert [word for word in words if word not in found] == []


def version_with(hook: MlflowHook, *, source: str, **version_tags: str) -> object:
    name = f"foreign-{uuid.uuid4().hex[:8]}"
    if source.startswith("models:/"):
        return mlflow.register_model(source, name, tags=version_tags)
    hook.client.create_registered_model(name)
    return hook.client.create_model_version(name, source, tags=version_tags)


def logged(signature: ModelSignature | None) -> str:
    with mlflow.start_run():
        model = torch.nn.Linear(8, 2)
        kwargs = {"serialization_format": "pickle", "pip_requirements": ["torch"]}
        return str(mlflow.pytorch.log_model(model, name="model", signature=signature, **kwargs).model_uri)


def test_the_report_of_a_release_has_the_contract(hook: MlflowHook) -> None:
    expected = contract([X], [Y])
    found = version_with(hook, source=put_report(expected), **RELEASED)
    assert contract_of(hook, "minio_default", found) == expected


def test_a_version_of_another_program_has_the_contract_of_its_signature(hook: MlflowHook) -> None:
    expected = contract(
        [("signal", "float32", ("free", 8))],
        [("positions", "float32", ("free", 2)), ("spread", "float32", ("free", 2))],
    )
    assert contract_of(hook, "minio_default", version_with(hook, source=logged(SIGNATURE))) == expected


def test_a_version_without_a_readable_signature_is_unknown(hook: MlflowHook) -> None:
    columns = ModelSignature(Schema([ColSpec("double", "x")]), Schema([ColSpec("double", "y")]))
    for source in (logged(None), logged(columns), "s3://heimdall-models/nothing"):
        with refused("contract_unknown", "contract_change", f"{tags.ROOT}.model_name"):
            contract_of(hook, "minio_default", version_with(hook, source=source))


def test_an_array_dtype_of_a_signature_is_named_as_in_an_artifact() -> None:
    assert str(SIGNATURE.inputs.inputs[0].type) == TensorSpec(name="x", dtype=np.dtype("float32").name, shape=()).dtype
