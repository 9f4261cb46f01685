"""Extra links of tasks: training run, report, another release, model version and uploaded objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class _UrlLink(BaseOperatorLink):
    """A link whose address is in the operator's `link_urls`.

    Airflow calls `get_link` on the worker after `execute`, with the same operator object, and stores the result.
    """

    name = ""

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """Return the address, or an empty string if `execute` has not set it."""
        linked: Any = operator
        return str(linked.link_urls.get(self.name, ""))


@attrs.define()
class TrainingRunLink(_UrlLink):
    """Link to the training run in MLflow."""

    name = "Training run"


@attrs.define()
class ReportLink(_UrlLink):
    """Link to the report of the release among the artifacts of its training run."""

    name = "Report"


@attrs.define()
class RerunLink(_UrlLink):
    """Link to the trigger page, filled in with the parameters of the release."""

    name = "Release again"


@attrs.define()
class ModelVersionLink(_UrlLink):
    """Link to the model version in MLflow."""

    name = "Model version"


@attrs.define()
class ObjectLink(_UrlLink):
    """Link to the uploaded objects in the store's console."""

    name = "Objects"


def release_links() -> tuple[BaseOperatorLink, ...]:
    """Return the links that each task of a release has, also a refused one."""
    return TrainingRunLink(), ReportLink(), RerunLink()
