"""The fastest form of the exported model that still is the model: tried on request, measured, gated."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import defaults, params, validation
from airflow_onnx.operators.measuring_step import MeasuringStepOperator
from airflow_onnx.storage import staging, worker_cache
from airflow_onnx.tracking.release_inputs import fetch_inputs
from onnx_release import limits
from onnx_release.errors import Refused
from onnx_release.records import OnnxArtifact

if TYPE_CHECKING:
    from airflow.sdk import Context

    from onnx_release.tuning.options import TuneOptions


class OnnxTuneOperator(MeasuringStepOperator):
    """Returns the `OnnxArtifact` that goes on: the winner of the tuning in a folder of its own, or the exported one.

    :param artifact: the `OnnxArtifact` that the export returned.
    :param work_uri: the DAG run's work folder, as `PrepareWorkFolderOperator` returned it.
    :param enabled: whether to tune at all; otherwise the task hands on what it was given.
    :param precisions: what may be shipped, of ``float32``, ``float16`` and ``int8``; without ``float32`` the release is
        refused when nothing of the others passes.
    :param max_s: how long the tuning may take, in seconds.
    :param evaluation_uri: an ``.npz`` file of inputs and targets; empty: as the run's tag says.
    :param metric_loss_max: how much worse than PyTorch's the metric on it may be, as a part of PyTorch's.
    :param allowed_domains: operator domains that the serving runtime knows, besides ONNX's own.
    :param opset: the opset that the release asks for, if it does.
    :param alias: the alias that the release will move, and `stage` its legacy stage: what cannot be combined with a
        reduced precision is refused here, before anything is uploaded.
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
        self.alias = alias
        self.stage = stage

    def release(self, context: Context) -> OnnxArtifact:
        """Tune, keep the table, raise last."""
        artifact = self.gathered["artifact"] = params.record(OnnxArtifact, self.artifact, "export")
        if params.value(self.enabled) is not True:
            self.log.info("Tuning is off; the exported model goes on as it is.")
            return artifact
        asked = params.value(self.precisions)
        if isinstance(asked, list | tuple) and validation.EXACT not in asked:
            # Whatever wins will be refused later: that takes no measuring to know.
            self._require_names(asked)
        tuned = self.gathered["artifact"] = self._tuned(artifact)
        self._log_table(tuned)
        self._require_asked(tuned)
        self._require_names([tuned.precision])
        return tuned

    def _require_names(self, precisions: Sequence[str]) -> None:
        for precision in precisions:
            validation.alias_for(self.alias, precision)
            validation.stage_for(self.stage, precision)

    def _tuned(self, artifact: OnnxArtifact) -> OnnxArtifact:
        from onnx_release.run_step import tune

        work = staging.open_staging(self.work_uri)
        with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
            out, options = work.output_folder(staging.TUNED, Path(scratch)), self._options(Path(scratch))
            with (
                staging.open_staging(artifact.staging_uri).local_folder(artifact) as folder,
                worker_cache.trained_model(self.hook, self.training.model_uri, artifact.trained_sha256) as trained,
            ):
                tuned = tune(trained.path, folder, artifact, out, options)
            # Without a variant it is the exported one, where that is staged.
            return work.stage(staging.TUNED, tuned, out) if tuned.variant else tuned

    def _options(self, scratch: Path) -> TuneOptions:
        from onnx_release.tuning.options import TuneOptions

        source = self.told()
        where = source.evaluation_uri(self.evaluation_uri)
        return params.settings(
            TuneOptions,
            {
                "precisions": self.precisions,
                "max_s": self.max_s,
                "metric_loss_max": self.metric_loss_max,
                "allowed_domains": self.allowed_domains,
            },
            judge=self.benchmark_options(scratch, source).to_dict(),
            opset=params.optional_integer(self.opset, "opset", limits.OPSET_MIN, limits.OPSET_MAX),
            evaluation=fetch_inputs(self.hook, self.s3_conn_id, where, scratch / "evaluation", "evaluation_uri"),
        )

    def _require_asked(self, tuned: OnnxArtifact) -> None:
        """Refuse to ship the exact model to someone who asked for a reduced one alone."""
        asked = tuple(params.value(self.precisions))
        if tuned.precision in asked or tuned.tuning is None:
            return
        why = [f"{c.name}: {c.outcome}, {c.reason}" for c in tuned.tuning.candidates if c.precision in asked]
        raise Refused(
            f"tuning to {', '.join(asked)}",
            f"found nothing that passed and was faster than the plain export ({'; '.join(why)})",
            "The table on the training run has every figure; with 'float32' among tune_precisions the plain export "
            "would have gone on.",
        )

    def _log_table(self, tuned: OnnxArtifact) -> None:
        from onnx_release.report.markdown import tuning_markdown

        for line in tuning_markdown(tuned.tuning).splitlines() if tuned.tuning else ():
            self.log.info("%s", line)
