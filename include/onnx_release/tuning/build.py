"""Building of variants, each in its own folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx_release.benchmark.setup import BenchmarkSetup
from onnx_release.export import export_model
from onnx_release.export.export_model import ExportStepOptions
from onnx_release.limits import CALIBRATION_SAMPLE_ROWS
from onnx_release.samples.dimensions import batch_axes
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from onnx_release.tuning import quantization
from onnx_release.tuning.graph_rewrites import GraphFacts, fold_scales
from onnx_release.tuning.variants import Kind, Variant

# Speed of the tools in model bytes per second, on one slow core. It only predicts which builds are too long.
_QUANTIZE_BYTES_PER_S = 15e6
_BYTES_PER_S: dict[Kind, float] = {"fused": 100e6, "int8-blockwise": 100e6}


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantBuilder:
    """Builder of variants from an exported model.

    `trained` is the fetched folder of the trained model. `calibration` are inputs for the ranges of activations.
    `scratch` is an empty folder, which is removed after the tuning.
    """

    setup: BenchmarkSetup
    trained: Path
    facts: GraphFacts
    calibration: Sequence[Arrays]
    scratch: Path

    def expected_s(self, variant: Variant) -> float:
        """Estimate the duration of a build, in seconds."""
        artifact = self.setup.artifact
        if not variant.has_own_file:
            return 0.0
        if variant.kind == "opset":
            return artifact.export_wall_s
        return artifact.size_bytes / _BYTES_PER_S.get(variant.kind, _QUANTIZE_BYTES_PER_S)

    def build(self, variant: Variant) -> Path:
        """Return the folder with the variant's ``model.onnx``.

        Raises:
            Refused: the variant cannot be built; an `ExportRefused` or a `TuningRefused`.
        """
        if variant.kind == "session":
            return self.setup.folder
        target = self.scratch / (variant.file_of or variant.name)
        if variant.file_of is not None:
            return target
        if variant.kind == "opset":
            self._export(variant, target)
        elif variant.kind == "fused":
            fold_scales(self.setup.folder, target)
        elif variant.kind == "float16":
            quantization.convert_to_float16(self._base(), target)
        else:
            self._quantize(variant, target)
        return target

    def _export(self, variant: Variant, target: Path) -> None:
        benchmark = self.setup.options
        options = ExportStepOptions(
            opset=variant.opset,
            device=self.setup.device,
            allow_pickle=benchmark.allow_pickle,
            factory=benchmark.factory,
            input_spec=benchmark.input_spec,
            # The package of the chosen variant has those of the plain export.
            reference_max_bytes=0,
        )
        export_model.export_trained(self.trained, target, options)

    def _quantize(self, variant: Variant, target: Path) -> None:
        options = quantization.Int8Options(
            exclude=self.facts.heads if variant.careful else (),
            whole_bytes=variant.careful,
            convolutions=variant.convolutions,
        )
        if variant.kind == "int8-dynamic":
            quantization.quantize_dynamic(self._base(), target, options)
        elif variant.kind == "int8-blockwise":
            quantization.quantize_blockwise(self._base(), target, options)
        else:
            quantization.quantize_static(self._base(), target, options, self.calibration)

    def _base(self) -> Path:
        """Return the model to quantize. Its scales are folded, because a quantizer leaves them in float."""
        if not self.facts.scales:
            return self.setup.folder
        folded = self.scratch / "base"
        if not folded.exists():
            fold_scales(self.setup.folder, folded)
        return folded


def calibration_inputs(samples: Sequence[Sample], setup: BenchmarkSetup) -> list[Arrays]:
    """Return the first rows of the largest batch of each sample. Samples of extreme values are not used."""
    largest: dict[str, Sample] = {}
    for sample in samples:
        known = largest.get(sample.name)
        if not sample.probing and (known is None or sample.batch_size > known.batch_size):
            largest[sample.name] = sample
    axes = batch_axes(setup.artifact.inputs)
    return [
        {
            name: array
            if (axis := axes[name]) is None
            else array.take(range(min(array.shape[axis], CALIBRATION_SAMPLE_ROWS)), axis=axis)
            for name, array in sample.inputs.items()
        }
        for sample in largest.values()
    ]
