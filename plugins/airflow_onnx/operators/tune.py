"""Operator of the tuning: builds variants of the exported model, and returns the fastest one that passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import defaults, params, step_times, validation
from airflow_onnx.operators.measuring_step import MeasuringStepOperator
from airflow_onnx.operators.release_step import StepRun
from airflow_onnx.storage import staging, worker_cache
from airflow_onnx.tracking.release_inputs import fetch_inputs
from onnx_release import limits
from onnx_release.records import OnnxArtifact, Precision
from onnx_release.records.base import Record
from onnx_release.scratch import scratch_folder

if TYPE_CHECKING:
    from onnx_release.tuning.options import TuneOptions


class _Precisions(Record):
    precisions: tuple[Precision, ...]


class OnnxTuneOperator(MeasuringStepOperator):
    """Tunes the exported model and returns the `OnnxArtifact` of the winner, or the exported one.

    :param work_uri: the work folder of the DAG run, as `PrepareWorkFolderOperator` returned it.
    :param enabled: tune, or return the exported artifact.
    :param precisions: the precisions that may ship, of ``exact``, ``float16`` and ``int8``. Without ``exact`` the
        release is refused if no variant of the others passes.
    :param max_s: the longest tuning in seconds.
    :param evaluation_uri: an ``.npz`` file of inputs and targets; empty for the one in the run's tag.
    :param metric_loss_max: the largest loss of the metric on it, as a fraction of PyTorch's metric.
    :param allowed_domains: operator domains that the serving runtime supports, besides ONNX's own.
    :param opset: the opset of the release, if it sets one.
    :param single_file_max_bytes: that of the export.
    :param alias: the alias that the release moves.
    :param stage: the legacy stage that the release sets. An alias or stage that a reduced precision cannot have is
        refused before the upload.
    """

    template_fields: Sequence[str] = (
        *MeasuringStepOperator.template_fields,
        "work_uri",
        "enabled",
        "precisions",
        "max_s",
        "evaluation_uri",
        "metric_loss_max",
        "allowed_domains",
        "opset",
        "single_file_max_bytes",
        "alias",
        "stage",
    )
    ui_color = "#ede9fe"

    def __init__(
        self,
        *,
        work_uri: str,
        enabled: Any = False,
        precisions: Any = ("exact",),
        max_s: Any = limits.TUNE_MAX_S,
        evaluation_uri: str = "",
        metric_loss_max: Any = limits.METRIC_LOSS_MAX,
        allowed_domains: Any = (),
        opset: Any = None,
        single_file_max_bytes: Any = limits.SINGLE_FILE_MAX_BYTES,
        alias: str = defaults.ALIAS,
        stage: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.work_uri = work_uri
        self.enabled = enabled
        self.precisions = precisions
        self.max_s = max_s
        self.evaluation_uri = evaluation_uri
        self.metric_loss_max = metric_loss_max
        self.allowed_domains = allowed_domains
        self.opset = opset
        self.single_file_max_bytes = single_file_max_bytes
        self.alias = alias
        self.stage = stage

    def release(self, run: StepRun) -> OnnxArtifact:
        """Tune, log the table of variants, and check the winner.

        :raises TuningRefused: if only reduced precisions may ship and no variant of them passed.
        """
        from onnx_release.tuning.options import require_precision

        artifact = run.evidence["artifact"] = params.record(OnnxArtifact, self.artifact, "export")
        if params.value(self.enabled) is not True:
            self.log.info("Tuning is off: the exported model goes on unchanged.")
            return artifact
        step_times.log_wait(run.context)
        precisions = params.settings(_Precisions, {"precisions": self.precisions}).precisions
        if Precision.EXACT not in precisions:
            # The alias or stage is wrong for every possible winner: refuse before the work.
            self._require_names(precisions)
        tuned = run.evidence["artifact"] = self._tuned(run, artifact)
        if tuned.tuning:
            step_times.leave_wait(run.context, tuned.tuning.waited_s)
        self._log_table(tuned)
        require_precision(tuned, precisions)
        self._require_names([tuned.precision])
        return tuned

    def _require_names(self, precisions: Sequence[Precision]) -> None:
        for precision in precisions:
            validation.alias_for(self.alias, precision)
            validation.stage_for(self.stage, precision)

    def _tuned(self, run: StepRun, artifact: OnnxArtifact) -> OnnxArtifact:
        from onnx_release.run_step import tune

        work = staging.open_staging(self.work_uri)
        with scratch_folder() as scratch:
            out, options = work.output_folder(staging.TUNED, scratch), self._options(run, scratch)
            with (
                staging.open_staging(artifact.staging_uri).local_folder(artifact) as folder,
                worker_cache.trained_model(run.hook, run.trained_model.model_uri, artifact.trained_sha256) as trained,
            ):
                tuned = tune(trained.path, folder, artifact, out, options)
            # Without a variant the winner is the exported artifact, which is staged already.
            return work.stage(staging.TUNED, tuned, out) if tuned.variant else tuned

    def _options(self, run: StepRun, scratch: Path) -> TuneOptions:
        from onnx_release.tuning.options import TuneOptions

        source = self.release_inputs(run)
        evaluation_uri = source.evaluation_uri(self.evaluation_uri)
        return params.settings(
            TuneOptions,
            {
                "precisions": self.precisions,
                "max_s": self.max_s,
                "metric_loss_max": self.metric_loss_max,
                "allowed_domains": self.allowed_domains,
            },
            benchmark=self.benchmark_options(run, source, scratch).to_dict(),
            opset=params.optional_integer(self.opset, "opset", limits.OPSET_MIN, limits.OPSET_MAX),
            single_file_max_bytes=params.single_file_max_bytes(self.single_file_max_bytes),
            evaluation=fetch_inputs(
                run.hook, self.s3_conn_id, evaluation_uri, scratch / "evaluation", "evaluation_uri"
            ),
        )

    def _log_table(self, tuned: OnnxArtifact) -> None:
        from onnx_release.report.markdown import tuning_markdown

        for line in tuning_markdown(tuned.tuning, for_log=True).splitlines() if tuned.tuning else ():
            self.log.info("%s", line)
