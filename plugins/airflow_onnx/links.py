"""Buttons on a task's page that lead to what it made: the training run, the model version, the objects in MinIO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class _UrlLink(BaseOperatorLink):
    """A link whose address `execute` has left in the operator's `link_urls`.

    Airflow calls `get_link` on the worker, after `execute` and with the same operator object, and stores the answer.
    """

    name = ""

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address, or an empty string when the task did not get that far."""
        urls: dict[str, str] = getattr(operator, "link_urls", {})
        return urls.get(self.name, "")


@attrs.define()
class TrainingRunLink(_UrlLink):
    """Leads to the training run in MLflow."""

    name = "Training run"


@attrs.define()
class ModelVersionLink(_UrlLink):
    """Leads to the model version in MLflow."""

    name = "Model version"


@attrs.define()
class ObjectLink(_UrlLink):
    """Leads to the uploaded objects in the store's console."""

    name = "Objects"
