"""Tuning of an exported model: build variants, test them, time them, and package the fastest."""

from __future__ import annotations

import shutil
from pathlib import Path

from onnx_release.artifact import onnx_file
from onnx_release.artifact.digests import describe_folder, folder_sha256, fresh_folder
from onnx_release.artifact.mlflow_package import PackageSpec, write_package
from onnx_release.benchmark.setup import BenchmarkSetup
from onnx_release.latency.evaluate import require_valid_latency_options
from onnx_release.latency.host_lock import HostLock
from onnx_release.limits import REFERENCE_FILE
from onnx_release.parity.limits import require_limits
from onnx_release.parity.task_metrics import read_evaluation_sample
from onnx_release.records import OnnxArtifact, Precision, TuneReport
from onnx_release.samples.reference import read_reference
from onnx_release.scratch import scratch_folder
from onnx_release.trained.mlflow_model import read_example
from onnx_release.tuning.acceptance import AcceptanceTest
from onnx_release.tuning.build import VariantBuilder, calibration_inputs
from onnx_release.tuning.graph_rewrites import read_facts, read_versions
from onnx_release.tuning.options import TuneOptions, require_valid_tune_options
from onnx_release.tuning.race import Race
from onnx_release.tuning.search import AcceptedVariant, Search, TimeLimit
from onnx_release.tuning.variants import PLAIN_EXPORT, plan_variants


def tune_artifact(trained: Path, folder: Path, artifact: OnnxArtifact, out: Path, options: TuneOptions) -> OnnxArtifact:
    """Return the fastest variant that passes its acceptance test, or `artifact` if none is faster.

    The returned record has the report of the tuning in `tuning`.

    Args:
        trained: the fetched folder of the trained model.
        folder: the folder of the exported artifact; it is not changed.
        artifact: the exported artifact. The folder must have its sha256.
        out: the folder for the package of the chosen variant.
        options: the options of the tuning.

    Raises:
        Refused: the folder has other bytes, the trained model cannot be loaded, or an option is invalid.
    """
    time_limit = TimeLimit(options.max_s, HostLock(options.benchmark.lock))
    require_valid_tune_options(options)
    require_valid_latency_options(options.benchmark.latency_budget, options.benchmark.measure_plan)
    for precision in {Precision.EXACT, *options.precisions}:
        require_limits(options.benchmark.limits_for(precision), artifact.outputs)
    setup = BenchmarkSetup.load(trained, folder, artifact, options.benchmark)
    options = options.replace(benchmark=setup.options)
    with scratch_folder() as scratch:
        search = _prepare_search(setup, trained, scratch, options, time_limit)
        chosen = search.run(plan_variants(artifact, search.builder.facts, options, setup.threads))
        tuned = artifact if chosen is None else _package(chosen, setup, out, options)
        return tuned.replace(tuning=_report(search, artifact, chosen))


def _prepare_search(
    setup: BenchmarkSetup, trained: Path, scratch: Path, options: TuneOptions, time_limit: TimeLimit
) -> Search:
    """Read the samples, run PyTorch on them, and return the search with its builder, acceptance test and race."""
    samples = setup.samples()
    calibration = calibration_inputs(samples, setup)
    evaluation = None
    if options.evaluation is not None:
        artifact = setup.artifact
        whole = read_evaluation_sample(Path(options.evaluation), artifact.inputs, artifact.outputs)
        extra, evaluation = whole.split()
        calibration += [extra] if extra is not None else []
    acceptance = AcceptanceTest(
        artifact=setup.artifact,
        evaluation=evaluation,
        metric_loss_max=options.metric_loss_max,
        stored=read_reference(setup.folder) or (),
    )
    with setup.reference(mha_fastpath=False) as reference:
        acceptance.run_reference(reference, samples)
    builder = VariantBuilder(
        setup=setup, trained=trained, facts=read_facts(setup.folder), calibration=calibration, scratch=scratch
    )
    size = options.benchmark.latency_budget.batch_size
    # The benchmark times this sample too: the run's example where there is one.
    sample = next(one for one in samples if one.batch_size == size and not one.probing)
    race = Race(baseline=PLAIN_EXPORT.name, sample=sample, plan=options.benchmark.measure_plan, lock=time_limit.lock)
    return Search(builder=builder, acceptance=acceptance, race=race, options=options, time_limit=time_limit)


def _report(search: Search, artifact: OnnxArtifact, chosen: AcceptedVariant | None) -> TuneReport:
    benchmark = search.options.benchmark
    evaluation = search.acceptance.evaluation
    reduced = [precision for precision in search.options.precisions if not precision.is_exact]
    return TuneReport(
        sha256=artifact.sha256,
        chosen=chosen.variant.name if chosen else PLAIN_EXPORT.name,
        variants=tuple(search.records.values()),
        batch_size=benchmark.latency_budget.batch_size,
        threads=search.builder.setup.threads,
        confidence=benchmark.measure_plan.confidence,
        max_s=search.options.max_s,
        wall_s=round(search.time_limit.elapsed_s, 3),
        waited_s=round(search.time_limit.lock.waited_s, 3),
        precision_limits={precision: benchmark.limits_for(precision).to_dict() for precision in reduced},
        task_metric={name: metric.name for name, metric in evaluation.metrics.items()} if evaluation else {},
        notes=tuple(search.notes),
    )


def _package(chosen: AcceptedVariant, setup: BenchmarkSetup, out: Path, options: TuneOptions) -> OnnxArtifact:
    """Write the package of the chosen variant and return its record."""
    artifact, variant = setup.artifact, chosen.variant
    with fresh_folder(out) as target:
        onnx_file.repack(chosen.folder, target, options.single_file_max_bytes)
        write_package(
            target,
            PackageSpec(
                inputs=artifact.inputs,
                outputs=artifact.outputs,
                example=read_example(setup.folder),
                tool_versions=artifact.tool_versions,
                providers=artifact.providers,
                session_options=variant.session_options,
            ),
        )
        if (reference := setup.folder / REFERENCE_FILE).is_file():
            shutil.copyfile(reference, target / REFERENCE_FILE)
        files = describe_folder(target)
        opset, ir_version = read_versions(target)
    return artifact.replace(
        staging_uri=None,
        sha256=folder_sha256(files),
        size_bytes=sum(file.size_bytes for file in files),
        files=files,
        opset=opset,
        ir_version=ir_version,
        precision=variant.precision,
        variant=variant.name,
        session_options=variant.session_options,
    )
