"""Operators of the DAG `verify_releases`: list the versions, and verify a few of them in one task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from airflow.sdk import BaseOperator

from airflow_onnx import defaults, params, retries, validation
from airflow_onnx.events import verification_events
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.log_lines import one_line
from airflow_onnx.operators.cancelled import EndsWhenCancelled
from airflow_onnx.task_outcome import airflow_outcome, classified
from airflow_onnx.tracking.released_versions import ReleasedVersion, released_versions
from airflow_onnx.verification import results
from airflow_onnx.verification.verify_version import Verifier
from onnx_release.errors import ParameterRefused, Transient
from onnx_release.records.verification import VersionResult

if TYPE_CHECKING:
    from airflow.sdk import Context

# Each task imports for some seconds. Airflow refuses to map over a longer list than `[core] max_map_length`.
VERSIONS_PER_TASK, TASKS_MAX = 25, 500
_REASON_MAX_CHARACTERS = 500


class ListReleasedVersionsOperator(BaseOperator):
    """Lists the versions to verify; returns lists of `ReleasedVersion`, one list for each mapped task.

    :param models: the registered models, a list or its JSON; empty for all.
    :param all_versions: True for versions without an alias too.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`. Its account must be able to read every model.
    """

    template_fields: Sequence[str] = ("models", "all_versions", "mlflow_conn_id")
    ui_color = "#f1f5f9"

    def __init__(
        self,
        *,
        models: Any = (),
        all_versions: Any = False,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.models = models
        self.all_versions = all_versions
        self.mlflow_conn_id = mlflow_conn_id

    def execute(self, context: Context) -> list[list[dict[str, Any]]]:
        """List the versions and divide them."""
        with airflow_outcome(), MlflowRest(MlflowHook(self.mlflow_conn_id).server) as rest:
            names = texts(self.models, "models")
            found = released_versions(rest, names, all_versions=params.value(self.all_versions) is True)
        size = max(VERSIONS_PER_TASK, -(-len(found) // TASKS_MAX))
        self.log.info("%d versions to verify.", len(found))
        return [[one.to_dict() for one in found[start : start + size]] for start in range(0, len(found), size)]


class VerifyReleasedVersionsOperator(EndsWhenCancelled, BaseOperator):
    """Verifies a few versions, one after the other, and writes each result on its version.

    A failure of a server or of the worker decides nothing about a version. The task then goes on with the other
    versions, and Airflow repeats it. In its last try such a version is ``not verified``.

    :param versions: the `ReleasedVersion` records of this task.
    :param buckets: the buckets that versions may have their files in, a list or its JSON.
    :param latency: True to measure the latency too.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`, which writes tags.
    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`, which only reads.
    """

    template_fields: Sequence[str] = ("buckets", "latency", "mlflow_conn_id", "s3_conn_id", "versions")
    ui_color = "#dcfce7"

    def __init__(
        self,
        *,
        versions: Any,
        buckets: Any,
        latency: Any = False,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        s3_conn_id: str = defaults.S3_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.versions = versions
        self.buckets = buckets
        self.latency = latency
        self.mlflow_conn_id = mlflow_conn_id
        self.s3_conn_id = s3_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Verify the versions and return a `VersionResult` for each."""
        outages: list[Transient] = []
        with airflow_outcome(), MlflowRest(MlflowHook(self.mlflow_conn_id).server) as rest:
            verifier = Verifier(
                rest=rest,
                s3_conn_id=self.s3_conn_id,
                buckets=allowed_buckets(self.buckets),
                measures=params.value(self.latency) is True,
            )
            versions = [ReleasedVersion.from_dict(row) for row in params.value(self.versions)]
            found = [self._result(verifier, one, context, outages) for one in versions]
            ti: Any = context["ti"]
            if outages and retries.tries(ti) <= ti.task.retries:
                raise outages[0]
        verification_events.add(context, self.outlets, found)
        return [one.to_dict() for one in found]

    def _result(
        self, verifier: Verifier, version: ReleasedVersion, context: Context, outages: list[Transient]
    ) -> VersionResult:
        place: dict[str, Any] = {"model": version.name, "version": version.version, "aliases": version.aliases}
        try:
            report, latency = verifier.verify(version)
            is_news = results.write(verifier.rest, version, report, str(context["dag_run"].run_id))
        except Exception as error:  # noqa: BLE001 - a model of any kind runs here, and the others must be verified
            failure = classified(error)
            if isinstance(failure, Transient):
                outages.append(failure)
            self.log.warning("%s is not verified: %s", version.label, failure)
            reason = one_line(str(failure), _REASON_MAX_CHARACTERS)
            return VersionResult(**place, outcome="not verified", reason=reason)
        outcome: Literal["passed", "failed"] = "passed" if report.passed else "failed"
        self.log.info("%s %s on ONNX Runtime %s. %s", version.label, outcome, report.runtime, report.reason)
        return VersionResult(
            **place,
            outcome=outcome,
            reason=one_line(report.reason, _REASON_MAX_CHARACTERS),
            runtime=report.runtime,
            max_abs=report.max_abs,
            is_news=is_news,
            latency=latency,
        )


def texts(argument: Any, name: str) -> list[str]:
    """Return a list of texts from a parameter.

    :raises ParameterRefused: for another value.
    """
    found = params.value(argument) or []
    if not isinstance(found, list | tuple) or not all(isinstance(one, str) for one in found):
        action = 'Give a list of texts, for example ["one", "two"].'
        raise ParameterRefused(f"The parameter '{name}'", f"is {found!r:.200}", action, code="wrong_parameter")
    return list(found)


def allowed_buckets(argument: Any) -> list[str]:
    """Return the names of buckets from a parameter.

    :raises ParameterRefused: for an empty list, or a name that no bucket has.
    """
    found = [validation.validate_bucket(name) for name in texts(argument, "buckets")]
    if not found:
        action = "Name the bucket of the releases, or set [onnx_release] bucket."
        raise ParameterRefused("The parameter 'buckets'", "is empty", action, code="missing_value")
    return found
