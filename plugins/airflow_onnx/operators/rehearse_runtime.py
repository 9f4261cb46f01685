"""Operators of the DAG `rehearse_runtime`: choose versions and runtimes, rehearse each version, report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, BaseOperatorLink

from airflow_onnx import defaults, params
from airflow_onnx.deployment import settings
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.links import ReportLink
from airflow_onnx.log_lines import wrapped
from airflow_onnx.operators.cancelled import EndsWhenCancelled
from airflow_onnx.operators.verify_releases import allowed_buckets, texts
from airflow_onnx.task_outcome import airflow_outcome
from airflow_onnx.tracking import model_registry, rehearsal_log, version_files
from airflow_onnx.tracking.released_versions import ReleasedVersion, released_versions
from onnx_release.errors import ParameterRefused, Refused
from onnx_release.records.base import Record
from onnx_release.records.rehearsal import RehearsalReport, RehearsedModel, Runtime
from onnx_release.scratch import scratch_folder
from onnx_release.text import printable
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from airflow.sdk import Context


class ChosenRehearsal(Record):
    """One mapped task of a rehearsal: a released version, and the runtimes that all of them share."""

    version: ReleasedVersion
    runtimes: tuple[Runtime, ...]


class ChooseRehearsalOperator(BaseOperator):
    """Lists the released versions and the runtimes of a rehearsal; returns a `ChosenRehearsal` for each version.

    :param runtimes: a list of texts: exact versions, requirements, or names of `rehearsal_environments`.
    :param models: the registered models; empty for all.
    :param all_versions: True for versions that no alias holds, too.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`.
    """

    template_fields: Sequence[str] = ("runtimes", "models", "all_versions", "mlflow_conn_id")
    ui_color = "#f1f5f9"

    def __init__(
        self,
        *,
        runtimes: Any,
        models: Any = (),
        all_versions: Any = False,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.runtimes = runtimes
        self.models = models
        self.all_versions = all_versions
        self.mlflow_conn_id = mlflow_conn_id

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Resolve the runtimes once, so that every version gets the same ones."""
        from onnx_release.rehearsal.runtimes import choose_runtimes

        with airflow_outcome():
            runtimes = choose_runtimes(params.value(self.runtimes), environments=settings.rehearsal_environments())
            models = texts(self.models, "models")
            with MlflowRest(MlflowHook(self.mlflow_conn_id).server) as rest:
                versions = released_versions(rest, models, all_versions=params.value(self.all_versions) is True)
            if len(versions) > defaults.REHEARSAL_VERSIONS_MAX:
                raise ParameterRefused(
                    "The parameter 'models'",
                    f"stands for {len(versions)} versions; the limit is {defaults.REHEARSAL_VERSIONS_MAX}",
                    "Name some of the models, or leave out versions without an alias.",
                    code="not_in_range",
                )
        names = ", ".join(one.name for one in runtimes)
        self.log.info("%d versions are rehearsed in ONNX Runtime %s.", len(versions), names)
        return [ChosenRehearsal(version=version, runtimes=runtimes).to_dict() for version in versions]


class RehearseVersionOperator(EndsWhenCancelled, BaseOperator):
    """Downloads one version, runs it in each runtime beside the present one, and returns a `RehearsedModel`.

    A version that cannot be verified, or fails in a runtime, is a result and not a failure of the task. The version
    gets the tag `onnx.rehearsed`.

    :param chosen: a `ChosenRehearsal`.
    :param buckets: the buckets that versions may have their files in, a list or its JSON.
    :param latency: True to measure the latency.
    :param timeout_s: the longest run in one runtime in s.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`.
    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`.
    """

    template_fields: Sequence[str] = ("chosen", "buckets", "latency", "timeout_s", "mlflow_conn_id", "s3_conn_id")
    ui_color = "#fef9c3"

    def __init__(
        self,
        *,
        chosen: Any,
        buckets: Any,
        latency: Any = True,
        timeout_s: Any = defaults.REHEARSAL_TIMEOUT_S,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        s3_conn_id: str = defaults.S3_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.chosen = chosen
        self.buckets = buckets
        self.latency = latency
        self.timeout_s = timeout_s
        self.mlflow_conn_id = mlflow_conn_id
        self.s3_conn_id = s3_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Rehearse the version, and tag it."""
        with airflow_outcome():
            chosen = params.record(ChosenRehearsal, self.chosen, "choose")
            hook = MlflowHook(self.mlflow_conn_id)
            found = self._rehearsed(hook, chosen, f"{context['dag_run'].run_id}, task {self.task_id}")
            text = rehearsal_log.tag_text(found)
            model_registry.set_version_tag(
                hook, chosen.version.name, chosen.version.version, tags.VERSION_REHEARSED, text
            )
        for result in found.runtimes:
            for line in wrapped(f"ONNX Runtime {result.runtime}: {result.verdict}. {result.problem}"):
                self.log.info("%s", printable(line))
        return found.to_dict()

    def _rehearsed(self, hook: MlflowHook, chosen: ChosenRehearsal, holder: str) -> RehearsedModel:
        from onnx_release.latency.host_lock import LockOptions
        from onnx_release.rehearsal import rehearse

        version, runtimes, buckets = chosen.version, chosen.runtimes, allowed_buckets(self.buckets)
        options = rehearse.RehearsalOptions(
            plan=rehearse.PLAN if params.value(self.latency) else None,
            lock=LockOptions(path=settings.measure_lock(), timeout_s=settings.measure_lock_timeout_s(), holder=holder),
            timeout_s=_seconds(params.value(self.timeout_s)),
        )
        opened = rehearse.open_runtimes(runtimes, settings.runtimes_folder())
        with scratch_folder() as scratch:
            try:
                registered = model_registry.get_version(hook, version.name, version.version)
                artifact, report = version_files.fetch_version(self.s3_conn_id, registered, scratch, buckets)
            except Refused as refusal:
                if refusal.is_of_deployment:
                    raise
                problem = f"{refusal.subject} {refusal.problem}"
                return RehearsedModel(name=version.label, present=rehearse.present_version(), problem=problem)
            model = rehearse.ReleasedFolder.of_report(version.label, scratch, artifact, report)
            return rehearse.rehearse_model(model, opened, options)


class ReportRehearsalOperator(BaseOperator):
    """Writes the report of a rehearsal into a run of MLflow, and returns the run with a sentence for each runtime.

    :param chosen: the list of `ChosenRehearsal`.
    :param results: the `RehearsedModel` of each mapped task that succeeded.
    :param experiment: the experiment of the run. It is created if it is missing.
    :param mlflow_conn_id: an Airflow connection of type `mlflow`.
    """

    template_fields: Sequence[str] = ("chosen", "results", "experiment", "mlflow_conn_id")
    operator_extra_links: Sequence[BaseOperatorLink] = (ReportLink(),)
    ui_color = "#e0e7ff"

    def __init__(
        self,
        *,
        chosen: Any,
        results: Any,
        experiment: str = defaults.REHEARSAL_EXPERIMENT,
        mlflow_conn_id: str = MlflowHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.chosen = chosen
        self.results = results
        self.experiment = experiment
        self.mlflow_conn_id = mlflow_conn_id
        self.link_urls: dict[str, str] = {}

    def execute(self, context: Context) -> dict[str, Any]:
        """Log the table, and write the run."""
        from onnx_release.report.rehearsal import COLUMNS, rehearsal_rows, remarks, runtime_sentence

        with airflow_outcome():
            report = self._report()
            logged = rehearsal_log.log_rehearsal(MlflowHook(self.mlflow_conn_id), self.experiment, report)
        self.link_urls[ReportLink.name] = logged.url
        for line in rehearsal_log.table(COLUMNS, list(rehearsal_rows(report))):
            self.log.info("%s", printable(line))
        for text in remarks(report):
            for line in wrapped(text):
                self.log.info("%s", printable(line))
        sentences = [runtime_sentence(report, runtime) for runtime in report.runtimes]
        for sentence in sentences:
            self.log.info("%s", printable(sentence))
        return {"run_id": logged.run_id, "url": logged.url, "sentences": sentences}

    def _report(self) -> RehearsalReport:
        chosen = [ChosenRehearsal.from_dict(one) for one in params.value(self.chosen) or ()]
        if not chosen:
            raise TrackingRefused(
                "The rehearsal",
                "has no released version",
                "Release a model first, or rehearse all versions.",
                code="not_found",
            )
        listed: Iterable[Any] = self.results if self.results is not None else ()
        found = {one.name: one for one in map(RehearsedModel.from_dict, listed)}
        # Of the same worker image: a version whose task failed has none.
        present = next((one.present for one in found.values()), "unknown")
        missing = "its task failed: see the log of the task"
        return RehearsalReport(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            present=present,
            runtimes=tuple(one.name for one in chosen[0].runtimes),
            models=tuple(
                found.get(one.version.label) or RehearsedModel(name=one.version.label, present=present, problem=missing)
                for one in chosen
            ),
        )


def _seconds(given: Any) -> float:
    is_number = isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)
    if not is_number or not 0 < given <= defaults.REHEARSAL_TIMEOUT_MAX_S:
        raise ParameterRefused(
            "The parameter 'timeout_s'",
            f"is {given!r:.80}",
            f"Give a number of seconds up to {defaults.REHEARSAL_TIMEOUT_MAX_S:g}.",
            code="not_in_range",
        )
    return float(given)
