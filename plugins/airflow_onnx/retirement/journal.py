"""Retirements that were begun: tags of the registered model, which outlives its versions.

The tag is set before the version is deleted, and deleted after its objects. So a retirement that was killed in between
is ended by the next one. Anybody who may tag the model can write it: its content is checked before it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from onnx_release.errors import RecordRefused
from onnx_release.records.base import Record
from onnx_release.training_runs import tags

_TAG = re.compile(rf"{re.escape(tags.RETIRING)}\.(\d{{1,9}})")


class Begun(Record):
    """A retirement that was begun.

    Attributes:
        run_id: The training run of the version.
        sha256: The digest of its files.
        precision: Its precision.
        source: The folder of its objects.
        by: The person, or ``Airflow``.
        at: The time in UTC.
        why: The reason.
        dag_run: The DAG run. Empty for the command.
    """

    run_id: str
    sha256: str
    precision: str
    source: str
    by: str
    at: str
    why: str
    dag_run: str = ""


def read(model_tags: Mapping[str, str]) -> dict[int, Begun]:
    """Return the begun retirements of a model by version. Texts of another form are left out."""
    found = {}
    for tag, text in model_tags.items():
        if not (matched := _TAG.fullmatch(tag)):
            continue
        try:
            found[int(matched[1])] = Begun.from_dict(json.loads(text))
        except (RecordRefused, ValueError, RecursionError):
            continue
    return found


def write(rest: MlflowRest, model: str, version: int, begun: Begun) -> None:
    """Set the tag of a retirement."""
    text = json.dumps(begun.to_dict(), ensure_ascii=False)
    rest.call("POST", "registered-models/set-tag", {**_place(model, version), "value": text})


def remove(rest: MlflowRest, model: str, version: int) -> None:
    """Delete the tag of a retirement. A missing one is not an error."""
    try:
        rest.call("DELETE", "registered-models/delete-tag", _place(model, version))
    except TrackingRefused as error:
        if error.code != "not_found":
            raise


def _place(model: str, version: int) -> dict[str, Any]:
    return {"name": model, "key": f"{tags.RETIRING}.{version}"}
