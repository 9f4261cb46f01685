"""Whether a graph that was just written runs in ONNX Runtime and agrees with PyTorch, at sizes it was not traced with.

ONNX Runtime runs in a process of its own: a graph that makes it crash ends that process and not the export, and the
export holds no second copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from onnx_release import limits
from onnx_release.check.static_checks import malformed
from onnx_release.errors import Refused
from onnx_release.export.fallback import ExportResult
from onnx_release.export.strategies import ModelContract
from onnx_release.limits import ParityLimits
from onnx_release.parity.compare_model import run
from onnx_release.parity.compare_outputs import compare_outputs, output_scales
from onnx_release.records import TensorSpec
from onnx_release.runners.onnxruntime_process import OnnxRuntimeProcess
from onnx_release.runners.pytorch import PyTorchOptions, PyTorchRunner
from onnx_release.samples.edge_cases import probing_samples
from onnx_release.samples.generate import batch_names, make_samples
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.mapped_weights import dropping_pages


class ExportVerifier:
    """Holds a written model against PyTorch, on a few samples and against each dtype's default limits.

    PyTorch runs at once on the samples that any release would ask for: a model that fails there needs no exporter. Its
    context starts the process of ONNX Runtime, which gets ready while the exporter is at work.

    :raises Refused: when PyTorch does not run the example at one row, or seeded values at an unseen batch size.
    """

    def __init__(self, model: LoadedModel, options: PyTorchOptions, contract: ModelContract) -> None:
        self._model = model
        # Without the fast path of attention, whose masked places hold other numbers.
        self._options = replace(options, mha_fastpath=False)
        self._contract = contract
        with dropping_pages(model), PyTorchRunner(model, self._options) as reference:
            self._fixed = [(sample, run(reference, sample)) for sample in _fixed_samples(contract)]
        self._apart = OnnxRuntimeProcess()
        self._traced = [*self._fixed, *self._varied(contract.inputs, "cpu")] if not contract.outputs else []

    def __enter__(self) -> Self:
        self._apart.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._apart.__exit__(*exception)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What PyTorch's outputs are called, in order."""
        return tuple(self._fixed[0][1])

    def output_axes(self) -> dict[str, dict[int, str]]:
        """Return the dimensions of PyTorch's outputs that were seen to vary with the inputs' sizes, by name."""
        batch = batch_names(self._contract.inputs)[0]
        axes: dict[str, dict[int, str]] = {name: {} for name in self.output_names}
        first = self._fixed[-1][1] if self._traced else {}
        for sample, outputs in self._traced:
            for name, array in outputs.items():
                for axis, (size, other) in enumerate(zip(array.shape, first[name].shape, strict=False)):
                    if size != other:
                        axes[name].setdefault(axis, sample.varied or batch)
        return axes

    def __call__(self, folder: Path, result: ExportResult) -> str:
        """Return why the model in `folder` is no sound one, or does not do what PyTorch does, or an empty string."""
        if problem := malformed(folder):
            return problem
        cases = [*self._fixed, *self._varied(result.inputs, result.device)]
        try:
            found = self._apart.run(folder / limits.MODEL_FILE, [sample.inputs for sample, _ in cases])
        except Refused as refusal:
            return f"{refusal.subject}: {refusal.problem}"
        scales = output_scales(outputs for _, outputs in cases)
        for (sample, expected), outputs in zip(cases, found, strict=True):
            for compared in compare_outputs(expected, outputs, sample, ParityLimits(), scales):
                if not compared.passed:
                    self._require_one_answer(sample, expected, result.device)
                    where = f"output '{compared.output}' ({sample.name}, batch {sample.batch_size})"
                    return f"{where}: {'; '.join(compared.failures)}"
        return ""

    def _varied(self, inputs: Sequence[TensorSpec], device: str) -> Iterator[tuple[Sample, Arrays]]:
        """Yield other sizes of what else varies, as far as PyTorch runs at them."""
        contract = self._contract
        samples = [s for s in probing_samples(inputs, contract.example, contract.ranges) if s.varied]
        with (
            dropping_pages(self._model),
            PyTorchRunner(self._model, replace(self._options, device=device)) as reference,
        ):
            for sample in samples:
                try:
                    yield sample, run(reference, sample)
                except Refused:
                    continue

    def _require_one_answer(self, sample: Sample, outputs: Arrays, device: str) -> None:
        """Raise `Refused` for a model that answers at random: no strategy mends that, and nothing can be compared."""
        with (
            dropping_pages(self._model),
            PyTorchRunner(self._model, replace(self._options, device=device)) as reference,
        ):
            again = run(reference, sample)
        unlike = [c for c in compare_outputs(outputs, again, sample, ParityLimits()) if not c.passed]
        if unlike:
            raise Refused(
                "The PyTorch model",
                f"gives another answer at every call: output '{unlike[0].output}' twice on one input, "
                f"{'; '.join(unlike[0].failures)}",
                "Take the random numbers out of its eval mode, or make them an input.",
            )


def _fixed_samples(contract: ModelContract) -> Iterator[Sample]:
    sizes = (1, limits.UNSEEN_BATCH_SIZE)
    made = make_samples(contract.inputs, contract.example, sizes, contract.ranges)
    yield next(sample for sample in made if sample.batch_size == 1)
    yield next(sample for sample in reversed(made) if sample.batch_size == limits.UNSEEN_BATCH_SIZE)
