"""Third side of a benchmark: the champion, the version in production, on the candidate's samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onnx_release.artifact.digests import require_bytes
from onnx_release.benchmark.setup import BenchmarkSetup, ChampionOptions
from onnx_release.errors import ArtifactRefused, Refused
from onnx_release.limits import MODEL_FILE, REFERENCE_FILE, ParityLimits
from onnx_release.parity.compare_model import Comparison, run
from onnx_release.parity.task_metrics import read_evaluation_sample
from onnx_release.records import ChampionComparison, ChampionMetric, OnnxArtifact, ParityReport
from onnx_release.runners import Runner
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.sample import Sample
from onnx_release.text import shorten


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """The champion beside the candidate. `runner` is None where it cannot be measured; `compared` has the reason."""

    runner: OnnxRuntimeRunner | None
    compared: ChampionComparison


@contextmanager
def open_champion(setup: BenchmarkSetup, candidate: Runner, samples: Sequence[Sample]) -> Iterator[Champion | None]:
    """Open the champion and compare its outputs and its task metric with the candidate's.

    Yields:
        None without a champion. It is closed at the end of the block.
    """
    options = setup.options.champion
    if options is None:
        yield None
        return
    problem = options.problem or "it has no files"
    if options.artifact is not None and not options.problem:
        try:
            runner = _open(setup, Path(options.folder), options.artifact)
        except Refused as refusal:
            problem = str(refusal)
        else:
            with runner:
                compared = _compare(setup, options, (runner, candidate), samples)
                yield Champion(runner=None if compared.problem else runner, compared=compared)
            return
    yield Champion(runner=None, compared=_record(setup, options, problem=shorten(problem)))


def _open(setup: BenchmarkSetup, folder: Path, artifact: OnnxArtifact) -> OnnxRuntimeRunner:
    require_bytes(folder, artifact)
    runtime = OnnxRuntimeOptions(
        threads=setup.threads,
        providers=setup.artifact.providers,
        session_options=artifact.session_options,
    )
    return OnnxRuntimeRunner(folder / MODEL_FILE, runtime)


def _compare(
    setup: BenchmarkSetup, options: ChampionOptions, runners: tuple[Runner, Runner], samples: Sequence[Sample]
) -> ChampionComparison:
    """Run champion and candidate on the samples. A champion that does not run them has a problem."""
    limits = setup.options.limits_for(setup.artifact.precision)
    try:
        agreement = compare_runners(runners, samples, setup.artifact, limits)
        metrics = _metrics(setup, runners)
    except Refused as refusal:
        return _record(setup, options, problem=shorten(refusal))
    return _record(setup, options).replace(agreement=agreement.worst_per_output(), metrics=metrics)


def compare_runners(
    runners: tuple[Runner, Runner], samples: Sequence[Sample], artifact: OnnxArtifact, limits: ParityLimits
) -> ParityReport:
    """Compare the outputs of two released models on the same inputs.

    Args:
        runners: The earlier model and the later one.
        samples: The inputs. Those that do not decide are left out.
        artifact: The record of the later model.
        limits: The limits on the difference.

    Raises:
        RunnerRefused: The earlier model does not run a sample.
        ArtifactRefused: `other_outputs`, if the outputs have other names.
    """
    before, after = runners
    comparison = Comparison(artifact=artifact, limits=limits)
    comparison.expected = [(sample, run(before, sample)) for sample in samples if sample.decides]
    names = {name for _, outputs in comparison.expected for name in outputs}
    if missing := {spec.name for spec in artifact.outputs} ^ names:
        raise ArtifactRefused(
            "The later model",
            f"has other outputs than the earlier one: {', '.join(sorted(missing))}",
            "Compare models with the same outputs.",
            code="other_outputs",
        )
    comparison.run_candidate(after)
    return comparison.report()


def _metrics(setup: BenchmarkSetup, runners: tuple[Runner, Runner]) -> tuple[ChampionMetric, ...]:
    path = setup.options.evaluation_path
    if path is None:
        return ()
    sample = read_evaluation_sample(Path(path), setup.artifact.inputs, setup.artifact.outputs)
    champion, candidate = (sample.measure(runner) for runner in runners)
    return tuple(
        ChampionMetric(
            output=name,
            name=sample.metrics[name].name,
            champion=champion[name],
            candidate=candidate[name],
            loss=sample.metrics[name].loss(champion[name], candidate[name]),
        )
        for name in champion
    )


def _record(setup: BenchmarkSetup, options: ChampionOptions, *, problem: str = "") -> ChampionComparison:
    return ChampionComparison(
        sha256=setup.artifact.sha256,
        size_bytes=served_bytes(setup.artifact),
        alias=options.alias,
        version=options.version,
        champion_sha256=options.artifact.sha256 if options.artifact else None,
        champion_size_bytes=served_bytes(options.artifact) if options.artifact else None,
        parity=options.parity,
        margin=options.margin,
        metric_loss_max=options.metric_loss_max,
        on_worse=options.on_worse,
        on_unsettled=options.on_unsettled,
        problem=problem,
    )


def served_bytes(artifact: OnnxArtifact) -> int:
    """Return the size of the artifact without its reference outputs.

    They are not served: another file of inputs must not make a model larger than its champion.
    """
    return artifact.size_bytes - sum(file.size_bytes for file in artifact.files if file.path == REFERENCE_FILE)
