"""Verification of a written ONNX model: it runs in ONNX Runtime and agrees with PyTorch, also at untraced sizes.

ONNX Runtime runs in a separate process. A graph that crashes it does not end the export, and the export process needs
no second copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from onnx_release import limits
from onnx_release.check.static_checks import malformed
from onnx_release.errors import ExportRefused, Refused
from onnx_release.export.contract import ModelContract
from onnx_release.export.fallback import ExportResult
from onnx_release.limits import ParityLimits
from onnx_release.parity.compare_model import run
from onnx_release.parity.compare_outputs import compare_outputs
from onnx_release.parity.scales import output_scales
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
    """Comparison of a written model with PyTorch, on a few samples and with the default limits of each dtype.

    The constructor runs PyTorch on the samples that every release uses: the example at one row, and seeded values at
    an unseen batch size. A model that fails there needs no export. The context manager starts the ONNX Runtime
    process, which loads its libraries while the exporter runs.

    Args:
        model: The loaded model.
        options: Options of the PyTorch runner.
        contract: The inputs, outputs and sample of the model.

    Attributes:
        outputs: The places of the outputs in PyTorch's result.

    Raises:
        Refused: If PyTorch does not run one of these samples.
    """

    def __init__(self, model: LoadedModel, options: PyTorchOptions, contract: ModelContract) -> None:
        self._model = model
        # The fast path of attention writes other numbers into masked positions.
        self._options = replace(options, mha_fastpath=False)
        self._contract = contract
        sizes = (1, limits.UNSEEN_BATCH_SIZE)
        samples = make_samples(contract.inputs, contract.example, sizes, contract.ranges)
        required = (
            next(sample for sample in samples if sample.batch_size == 1),
            next(sample for sample in reversed(samples) if sample.batch_size == limits.UNSEEN_BATCH_SIZE),
        )
        with self._reference("cpu") as reference:
            self._cases = [(sample, run(reference, sample)) for sample in required]
            self.outputs = reference.outputs()
        self._observed: list[tuple[Sample, Arrays]] = []
        if not contract.outputs:
            self._observed = [*self._cases, *self._other_sizes(contract.inputs, "cpu")]
        self._onnxruntime = OnnxRuntimeProcess()

    def __enter__(self) -> Self:
        self._onnxruntime.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._onnxruntime.__exit__(*exception)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of PyTorch's outputs, in order."""
        return tuple(self._cases[0][1])

    def output_axes(self) -> dict[str, dict[int, str]]:
        """Return the output dimensions that varied with the sizes of the inputs: output -> axis -> dimension name.

        It is empty for each output if the training run describes its outputs.
        """
        batch = batch_names(self._contract.inputs)[0]
        axes: dict[str, dict[int, str]] = {name: {} for name in self.output_names}
        first = self._cases[-1][1]
        for sample, outputs in self._observed:
            for name, array in outputs.items():
                for axis, (size, other) in enumerate(zip(array.shape, first[name].shape, strict=False)):
                    if size != other:
                        axes[name].setdefault(axis, sample.varied or batch)
        return axes

    def __call__(self, folder: Path, result: ExportResult) -> str | None:
        """Return why the model in `folder` is malformed or differs from PyTorch, or None if it passes.

        Raises:
            ExportRefused: If PyTorch returns other outputs at each call (``random_outputs``).
        """
        if problem := malformed(folder):
            return problem
        cases = [*self._cases, *self._other_sizes(result.inputs, result.device)]
        try:
            candidates = self._onnxruntime.run(folder / limits.MODEL_FILE, [sample.inputs for sample, _ in cases])
        except Refused as refusal:
            return f"{refusal.subject} {refusal.problem}"
        scales = output_scales(cases)
        for (sample, expected), outputs in zip(cases, candidates, strict=True):
            for compared in compare_outputs(expected, outputs, sample, ParityLimits(), scales):
                if not compared.passed:
                    self._require_deterministic(sample, expected, result.device)
                    subject = f"output '{compared.output}' ({sample.name}, batch {sample.batch_size})"
                    return f"{subject}: {'; '.join(compared.failures)}"
        return None

    @contextmanager
    def _reference(self, device: str) -> Iterator[PyTorchRunner]:
        options = replace(self._options, device=device)
        with dropping_pages(self._model), PyTorchRunner(self._model, options) as reference:
            yield reference

    def _other_sizes(self, inputs: Sequence[TensorSpec], device: str) -> Iterator[tuple[Sample, Arrays]]:
        """Yield samples with other sizes of the varying dimensions, the batch excepted. Sizes that fail are skipped."""
        samples = probing_samples(inputs, self._contract.example, self._contract.ranges)
        with self._reference(device) as reference:
            for sample in samples:
                if sample.varied:
                    try:
                        outputs = run(reference, sample)
                    except Refused:
                        continue
                    yield sample, outputs

    def _require_deterministic(self, sample: Sample, outputs: Arrays, device: str) -> None:
        """Refuse a model whose outputs are random. No strategy changes that, and nothing can be compared."""
        with self._reference(device) as reference:
            second = run(reference, sample)
        different = [each for each in compare_outputs(outputs, second, sample, ParityLimits()) if not each.passed]
        if different:
            raise ExportRefused(
                "The PyTorch model",
                f"returns different outputs for the same input: output '{different[0].output}', "
                f"{'; '.join(different[0].failures)}",
                "Remove the random numbers from eval mode, or make them an input.",
                code="random_outputs",
            )
