"""The tuning as one call: an exported model in, the model that is to be shipped out."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from onnx_release.artifact.digests import describe_folder, folder_sha256, fresh_folder
from onnx_release.artifact.mlflow_package import PackageSpec, write_package
from onnx_release.benchmark.setup import BenchmarkSetup
from onnx_release.latency.evaluate import require_valid_latency_options
from onnx_release.latency.host_lock import HostLock
from onnx_release.limits import EXTERNAL_DATA_FILE, MODEL_FILE
from onnx_release.parity.limits import require_limits
from onnx_release.records import OnnxArtifact, TuneReport
from onnx_release.samples.sample import Sample
from onnx_release.trained.mlflow_model import read_example
from onnx_release.tuning.acceptance import AcceptanceTest
from onnx_release.tuning.build import CandidateBuilder, calibration_samples
from onnx_release.tuning.candidates import PLAIN, plan
from onnx_release.tuning.graph_rewrites import look_at, versions
from onnx_release.tuning.options import TuneOptions, require_tunable
from onnx_release.tuning.race import Race
from onnx_release.tuning.search import Clock, Entry, Search
from onnx_release.tuning.task_metrics import Evaluation, read_evaluation


def tune_artifact(trained: Path, folder: Path, artifact: OnnxArtifact, out: Path, options: TuneOptions) -> OnnxArtifact:
    """Return the fastest candidate that passes its gate, in the folder `out`; or `artifact`, where none is faster.

    Either has the whole table in `tuning`. The folder's bytes are held against `artifact` first.

    :param trained: what the training run left, as the export took it.
    :param folder: the exported artifact's folder, which is only read.
    :raises Refused: when there is nothing to tune: other bytes, a model that cannot be loaded, senseless options.
    """
    clock = Clock(options.max_s, HostLock(options.judge.lock))
    _require_sound(artifact, options)
    subject = BenchmarkSetup.load(trained, folder, artifact, options.judge)
    samples = subject.samples()
    with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
        search = _begun(subject, samples, trained, Path(scratch), options, clock)
        won = search.run(plan(artifact, search.workshop.facts, options, subject.threads))
        report = _report(search, artifact, won)
        return artifact.replace(tuning=report) if won is None else _shipped(won, subject, out, report)


def _require_sound(artifact: OnnxArtifact, options: TuneOptions) -> None:
    require_tunable(options)
    require_valid_latency_options(options.judge.latency_budget, options.judge.measure_plan)
    for precision in {PLAIN, *options.precisions}:
        require_limits(options.judge.limits_for(precision), artifact.outputs)


def _begun(
    subject: BenchmarkSetup, samples: list[Sample], trained: Path, scratch: Path, options: TuneOptions, clock: Clock
) -> Search:
    calibration = calibration_samples(samples, subject)
    evaluation: Evaluation | None = None
    if options.evaluation:
        artifact = subject.artifact
        seen, evaluation = read_evaluation(Path(options.evaluation), artifact.inputs, artifact.outputs).divided()
        calibration += [seen] if seen is not None else []
    gate = AcceptanceTest(artifact=subject.artifact, evaluation=evaluation, metric_loss_max=options.metric_loss_max)
    with subject.reference(mha_fastpath=False) as reference:
        gate.run_reference(reference, samples)
    workshop = CandidateBuilder(
        subject=subject,
        trained=trained,
        facts=look_at(subject.folder),
        calibration=calibration,
        scratch=scratch,
    )
    size = options.judge.latency_budget.batch_size
    # As the judge will: the example where there is one, the most like what will be served.
    sample = next(one for one in samples if one.batch_size == size and not one.probing)
    contest = Race(baseline=PLAIN, sample=sample, plan=options.judge.measure_plan, lock=clock.lock)
    return Search(workshop=workshop, gate=gate, contest=contest, options=options, clock=clock)


def _report(search: Search, artifact: OnnxArtifact, won: Entry | None) -> TuneReport:
    judge = search.options.judge
    evaluation = search.gate.evaluation
    reduced = [precision for precision in search.options.precisions if not precision.is_exact]
    return TuneReport(
        sha256=artifact.sha256,
        chosen=won.candidate.name if won else PLAIN,
        candidates=tuple(search.records.values()),
        batch_size=judge.latency_budget.batch_size,
        threads=search.workshop.subject.threads,
        confidence=judge.measure_plan.confidence,
        max_s=search.options.max_s,
        wall_s=round(search.clock.elapsed_s, 3),
        precision_limits={precision: judge.limits_for(precision).to_dict() for precision in reduced},
        task_metric={name: metric.name for name, metric in evaluation.metrics.items()} if evaluation else {},
        notes=tuple(search.notes),
    )


def _shipped(won: Entry, subject: BenchmarkSetup, out: Path, report: TuneReport) -> OnnxArtifact:
    """Put the winner into a whole package of its own."""
    artifact, candidate = subject.artifact, won.candidate
    with fresh_folder(out) as target:
        for name in (MODEL_FILE, EXTERNAL_DATA_FILE):
            if (won.folder / name).exists():
                shutil.copyfile(won.folder / name, target / name)
        write_package(
            target,
            PackageSpec(
                inputs=artifact.inputs,
                outputs=artifact.outputs,
                example=read_example(subject.folder),
                tool_versions=artifact.tool_versions,
                providers=artifact.providers,
                session_options=candidate.session_options,
            ),
        )
        files = describe_folder(target)
        opset, ir_version = versions(target)
    return artifact.replace(
        staging_uri=None,
        sha256=folder_sha256(files),
        size_bytes=sum(file.size_bytes for file in files),
        files=files,
        opset=opset,
        ir_version=ir_version,
        precision=candidate.precision,
        variant=candidate.name,
        session_options=candidate.session_options,
        tuning=report,
    )
