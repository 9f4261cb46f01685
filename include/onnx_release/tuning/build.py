"""Makes the candidates' models, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from onnx_release.benchmark.setup import BenchmarkSetup
from onnx_release.export import export_model
from onnx_release.export.export_model import ExportStepOptions
from onnx_release.limits import CALIBRATION_SAMPLE_ROWS
from onnx_release.samples.generate import batch_axis
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from onnx_release.tuning import quantization
from onnx_release.tuning.candidates import Candidate, Kind
from onnx_release.tuning.graph_rewrites import GraphFacts, fold_scales

# What the tools take for a model, in bytes a second, on one slow core: enough to know what cannot end in time.
_QUANTISE_BYTES_PER_S = 15e6
_BYTES_PER_S: dict[Kind, float] = {"fused": 100e6, "int8-blockwise": 100e6}


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateBuilder:
    """What candidates are made from; `scratch` is an empty folder that ends with the tuning."""

    subject: BenchmarkSetup
    trained: Path
    facts: GraphFacts
    calibration: Sequence[Arrays]
    scratch: Path

    def expected_s(self, candidate: Candidate) -> float:
        """Return about how long the making takes, in seconds."""
        artifact = self.subject.artifact
        if candidate.kind == "session" or candidate.shares:
            return 0.0
        if candidate.kind == "opset":
            return artifact.export_wall_s
        return artifact.size_bytes / _BYTES_PER_S.get(candidate.kind, _QUANTISE_BYTES_PER_S)

    def make(self, candidate: Candidate) -> Path:
        """Return the folder that holds the candidate's ``model.onnx``; raises `Refused` when it cannot be made."""
        target = self.scratch / (candidate.shares or candidate.name)
        if candidate.kind == "session":
            return self.subject.folder
        if candidate.shares:
            return target
        if candidate.kind == "opset":
            return self._exported(candidate, target)
        if candidate.kind == "fused":
            fold_scales(self.subject.folder, target)
            return target
        if candidate.kind == "float16":
            quantization.to_float16(self._base(), target)
            return target
        options = quantization.Int8Options(
            exclude=self.facts.heads if candidate.careful else (),
            whole_bytes=candidate.careful,
            convolutions=candidate.convolutions,
        )
        if candidate.kind == "int8-dynamic":
            quantization.quantise_dynamic(self._base(), target, options)
        elif candidate.kind == "int8-blockwise":
            quantization.quantise_blockwise(self._base(), target, options)
        else:
            quantization.quantise_static(self._base(), target, options, self.calibration)
        return target

    def _exported(self, candidate: Candidate, target: Path) -> Path:
        judge = self.subject.options
        export_model.export_trained(
            self.trained,
            target,
            ExportStepOptions(
                opset=candidate.opset,
                device=self.subject.device,
                allow_pickle=judge.allow_pickle,
                factory=judge.factory,
                input_spec=judge.input_spec,
            ),
        )
        return target

    def _base(self) -> Path:
        """Return the model that reduced precisions start from: with its scales folded, as each would stay in float."""
        if not self.facts.scales:
            return self.subject.folder
        folded = self.scratch / "base"
        if not folded.exists():
            fold_scales(self.subject.folder, folded)
        return folded


def calibration_samples(samples: Sequence[Sample], subject: BenchmarkSetup) -> list[Arrays]:
    """Return what activations' ranges are taken from: of each sample that is no extreme its largest batch."""
    largest: dict[str, Sample] = {}
    for sample in samples:
        known = largest.get(sample.name)
        if not sample.probing and (known is None or sample.batch_size > known.batch_size):
            largest[sample.name] = sample
    axes = {spec.name: batch_axis(spec) for spec in subject.artifact.inputs}
    return [{name: _rows(array, axes[name]) for name, array in s.inputs.items()} for s in largest.values()]


def _rows(array: npt.NDArray[Any], axis: int | None) -> npt.NDArray[Any]:
    return array if axis is None else array.take(range(min(array.shape[axis], CALIBRATION_SAMPLE_ROWS)), axis=axis)
