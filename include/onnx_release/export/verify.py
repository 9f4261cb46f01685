"""Verification of a written ONNX model: it runs in ONNX Runtime and agrees with PyTorch, also at untraced sizes.

Each call of PyTorch starts from the state in which the model was logged, because some models write in `forward`: a
table that grows with the longest input would otherwise have been grown by the tests themselves.

ONNX Runtime runs in a separate process. A graph that crashes it does not end the export, and the export process needs
no second copy of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from onnx_release import limits
from onnx_release.check.static_checks import malformed
from onnx_release.errors import ExportRefused, Refused
from onnx_release.export.contract import ModelContract, varying_axes
from onnx_release.export.fallback import ExportResult
from onnx_release.limits import ParityLimits
from onnx_release.parity.compare_model import nan_outputs, only_nan, run
from onnx_release.parity.compare_outputs import compare_outputs
from onnx_release.parity.limits import limits_for_weights
from onnx_release.parity.scales import output_scales
from onnx_release.records import TensorSpec
from onnx_release.runners.onnxruntime_process import OnnxRuntimeProcess
from onnx_release.runners.pytorch import PyTorchOptions, PyTorchRunner
from onnx_release.samples.dimensions import Dimensions, sizes_of
from onnx_release.samples.draw import seeded_arrays
from onnx_release.samples.edge_cases import probing_samples
from onnx_release.samples.generate import make_samples
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.dimension_names import identifiers
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.mapped_weights import dropping_pages
from onnx_release.trained.model_errors import float_dtypes
from onnx_release.trained.module_state import ModuleState

_NAMES = 10


class ExportVerifier:
    """Comparison of a written model with PyTorch, on a few samples and with the default limits of each dtype.

    The constructor runs PyTorch on the samples that every release uses: the example at one row and at an unseen batch
    size, and seeded values. A model that fails on its example needs no export. The context manager starts the ONNX
    Runtime process, which loads its libraries while the exporter runs.

    Args:
        model: The loaded model. It has the same state afterwards.
        options: Options of the PyTorch runner.
        contract: The inputs, outputs and sample of the model.

    Attributes:
        limited: Varying dimensions that PyTorch itself runs within a limit only, with that limit.
        outputs: The places of the outputs in PyTorch's result.

    Raises:
        Refused: If PyTorch does not run one of these samples, its outputs are random (``random_outputs``), or they
            depend on earlier calls (``stateful_model``).
    """

    def __init__(self, model: LoadedModel, options: PyTorchOptions, contract: ModelContract) -> None:
        self._model = model
        self._state = ModuleState(model)
        self.limited: dict[str, str] = {}
        # The fast path of attention writes other numbers into masked positions.
        self._options = replace(options, mha_fastpath=False)
        self._contract = contract
        self._limits = limits_for_weights(ParityLimits(), float_dtypes(model))
        sizes = (1, limits.UNSEEN_BATCH_SIZE)
        samples = make_samples(contract.inputs, contract.example, sizes, contract.ranges)
        required = [next(sample for sample in samples if sample.batch_size == size) for size in sizes]
        invented = next(sample for sample in reversed(samples) if sample.batch_size == limits.UNSEEN_BATCH_SIZE)
        with self._reference("cpu") as reference:
            self._cases = [(sample, self._run(reference, sample)) for sample in required]
            self._cases += self._those_that_run(reference, [invented])
            self.outputs = reference.outputs()
        observed = [*self._cases]
        self._axes = self._axes_of_batch()
        # More calls of PyTorch are needed only for a dimension that does not vary with the batch.
        signed = {(spec.name, axis) for spec in contract.outputs for axis in varying_axes(spec)}
        if not contract.outputs or any(axis not in self._axes.get(name, {}) for name, axis in signed):
            observed += self._other_sizes(contract.inputs, "cpu")
            self._axes = self._axes_of_batch(observed)
        self._require_repeatable(observed)
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

    @property
    def written(self) -> tuple[str, ...]:
        """The attributes of the model that `forward` wrote so far."""
        return tuple(self._state.written)

    def output_axes(self) -> dict[str, dict[int, str]]:
        """Return the dimensions of PyTorch's outputs that vary with the inputs: output -> axis -> dimension name.

        A dimension has the name of an input's dimension if it has its size, else one of its own.
        """
        return self._axes

    def __call__(
        self, folder: Path, result: ExportResult, meanwhile: Callable[[], object] = lambda: None
    ) -> str | None:
        """Return why the model in `folder` is malformed or differs from PyTorch, or None if it passes.

        Args:
            folder: The folder of the model.
            result: The export that wrote it.
            meanwhile: The caller's own work while ONNX Runtime runs the samples. A malformed model is not run.

        Raises:
            ExportRefused: If PyTorch returns other outputs at each call (``random_outputs``, ``stateful_model``), or
                the graph is wrong at sizes that no later step compares (``size_limit``).
        """
        if problem := malformed(folder):
            return problem
        others = [*self._other_sizes(result.inputs, result.device)]
        beyond = [*self._beyond_bounds(result)]
        self._require_repeatable([*self._cases, *others, *beyond])
        reason = self._difference(folder, [*self._cases, *others, *beyond], result.device, meanwhile)
        by_size = reason is not None and (beyond or (others and self._state.written))
        if by_size and self._difference(folder, self._cases, result.device) is None:
            written = f". `forward` writes {self._names()}" if self._state.written else ""
            raise ExportRefused(
                "The exported graph",
                f"is wrong at other sizes than the traced one: {reason}{written}",
                "Build a table or mask in `__init__` for the longest input, or compute it in `forward` at each call "
                "without storing it. Or write the fixed size into the signature.",
                code="size_limit",
            )
        return reason

    @contextmanager
    def reference_outputs(self) -> Iterator[Callable[[Sample], Arrays | None]]:
        """Yield a function that runs PyTorch on a sample. It returns None where PyTorch gives no reference.

        One thread on the CPU gives the same bits on hosts with another number of processors.
        """
        with self._reference("cpu", threads=1) as reference:

            def run_one(sample: Sample) -> Arrays | None:
                ran = [*self._those_that_run(reference, [sample])]
                is_invented = sample.seeded or not sample.decides or sample.probing
                usable = ran and not (is_invented and nan_outputs(ran[0][1]))
                return ran[0][1] if usable else None

            yield run_one

    def _difference(
        self,
        folder: Path,
        cases: Sequence[tuple[Sample, Arrays]],
        device: str,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> str | None:
        """Return the first difference between ONNX Runtime and PyTorch, or None."""
        inputs = [sample.inputs for sample, _ in cases]
        try:
            candidates = self._onnxruntime.run(folder / limits.MODEL_FILE, inputs, meanwhile)
        except Refused as refusal:
            return f"{refusal.subject} {refusal.problem}"
        scales = output_scales(cases)
        for (sample, expected), outputs in zip(cases, candidates, strict=True):
            for compared in compare_outputs(expected, outputs, sample, self._limits, scales):
                if not compared.passed:
                    self._require_deterministic(sample, expected, device)
                    subject = f"output '{compared.output}' ({sample.name}, batch {sample.batch_size})"
                    return f"{subject}: {'; '.join(compared.failures)}"
        return None

    @contextmanager
    def _reference(self, device: str, threads: int | None = None) -> Iterator[PyTorchRunner]:
        options = replace(self._options, device=device, threads=threads)
        with dropping_pages(self._model), PyTorchRunner(self._model, options) as reference:
            yield reference

    def _run(self, reference: PyTorchRunner, sample: Sample) -> Arrays:
        """Run PyTorch from the state in which the model was logged, and restore that state."""
        with self._state.restored():
            return run(reference, sample)

    def _those_that_run(self, reference: PyTorchRunner, samples: Iterable[Sample]) -> Iterator[tuple[Sample, Arrays]]:
        for sample in samples:
            with suppress(Refused):
                outputs = self._run(reference, sample)
                if not (sample.seeded and only_nan(outputs)):
                    yield sample, outputs

    def _other_sizes(self, inputs: Sequence[TensorSpec], device: str) -> Iterator[tuple[Sample, Arrays]]:
        """Yield samples with other sizes of the varying dimensions, the batch excepted. Sizes that fail are skipped."""
        samples = probing_samples(inputs, self._contract.example, self._contract.ranges)
        with self._reference(device) as reference:
            yield from self._those_that_run(reference, (sample for sample in samples if sample.varied))

    def _beyond_bounds(self, result: ExportResult) -> Iterator[tuple[Sample, Arrays]]:
        """Yield samples one size outside of the bounds that the trace fixed. Sizes that PyTorch refuses are skipped.

        A table of fixed length, or an `if` on a size, gives a graph that is right within such a bound only.
        """
        dimensions = Dimensions.of(result.inputs, self._contract.example, self._contract.ranges)
        with self._reference(result.device) as reference:
            for dimension, (low, high) in result.bounds.items():
                for size in (low - 1, high + 1 if high else 0):
                    sizes = dimensions.sizes(limits.UNSEEN_BATCH_SIZE, **{dimension: size})
                    if size < 1 or _elements(result.inputs, sizes) > limits.BOUND_ELEMENTS_MAX:
                        continue
                    contract, seed = self._contract, limits.SAMPLE_SEEDS[0]
                    arrays = seeded_arrays(dimensions, sizes, seed, contract.example, contract.ranges)
                    batch = sizes.get(dimensions.batch or "", limits.UNSEEN_BATCH_SIZE)
                    name = f"{dimension} {size}"
                    sample = Sample(name=name, inputs=arrays, batch_size=batch, probing=True, varied=(dimension,))
                    ran = [*self._those_that_run(reference, [sample])]
                    if not ran:
                        self.limited.setdefault(dimension, f"at least {low}" if size < low else f"at most {high}")
                    yield from ran

    def _axes_of_batch(self, observed: Sequence[tuple[Sample, Arrays]] = ()) -> dict[str, dict[int, str]]:
        """Return the output dimensions that vary with the batch, or with another dimension of the observed samples."""
        axes: dict[str, dict[int, str]] = {name: {} for name in self.output_names}
        dimensions = Dimensions.of(self._contract.inputs, self._contract.example, self._contract.ranges)
        (one, single), (usual, base) = self._cases[:2]
        if dimensions.batch is not None:
            _add_axes(axes, (base, single), (dimensions.batch, usual.batch_size, one.batch_size))
        sizes = dimensions.sizes(usual.batch_size)
        for sample, outputs in observed:
            if sample.varied:
                first = sample.varied[0]
                changed = sizes_of(self._contract.inputs, sample.inputs)[first]
                _add_axes(axes, (base, outputs), (first, sizes[first], changed))
        # Without a common batch, all leading dimensions grow together, so single ones are named first.
        _add_axes(axes, (base, single), ("", 0, 0))
        return axes

    def _require_repeatable(self, cases: Sequence[tuple[Sample, Arrays]]) -> None:
        """Run a model that writes attributes on every sample without a return to its state, the first one last.

        Raises:
            ExportRefused: If an output differs from that of the model as it was logged.
        """
        if not self._state.written:
            return
        first = cases[0]
        self._require_deterministic(*first, "cpu")
        with self._reference("cpu") as reference, self._state.restored():
            for sample, expected in (first, *reversed(cases), first):
                try:
                    outputs = run(reference, sample)
                    compared = compare_outputs(expected, outputs, sample, self._limits)
                    failures = [text for each in compared for text in each.failures]
                except Refused as refusal:
                    failures = [refusal.problem]
                if failures:
                    raise ExportRefused(
                        "The PyTorch model",
                        f"depends on earlier calls: `forward` writes {self._names()}, and a later call on the same "
                        f"input ({sample.name}, batch {sample.batch_size}) returns other outputs: {failures[0]}",
                        "An ONNX graph has no state. Return the new state as an output and take it as an input, or "
                        "write it in training mode only.",
                        code="stateful_model",
                    )

    def _names(self) -> str:
        names = list(self._state.written)
        return ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")

    def _require_deterministic(self, sample: Sample, outputs: Arrays, device: str) -> None:
        """Refuse a model whose outputs are random. No strategy changes that, and nothing can be compared."""
        with self._reference(device) as reference:
            second = self._run(reference, sample)
        different = [each for each in compare_outputs(outputs, second, sample, self._limits) if not each.passed]
        if different:
            raise ExportRefused(
                "The PyTorch model",
                f"returns different outputs for the same input: output '{different[0].output}', "
                f"{'; '.join(different[0].failures)}",
                "Remove the random numbers from eval mode, or make them an input.",
                code="random_outputs",
            )


def _elements(inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> int:
    return sum(math.prod(size if isinstance(size, int) else sizes[size] for size in spec.shape) for spec in inputs)


def _add_axes(axes: dict[str, dict[int, str]], outputs: tuple[Arrays, Arrays], dimension: tuple[str, int, int]) -> None:
    """Name the output axes that differ between two samples, in which a dimension has two sizes."""
    name, *sizes = dimension
    for output in axes.keys() & outputs[1].keys():
        found = zip(outputs[0][output].shape, outputs[1][output].shape, strict=False)
        for axis, pair in enumerate(found):
            if pair[0] != pair[1]:
                own = identifiers([f"{output}_dim{axis}"])[f"{output}_dim{axis}"]
                axes[output].setdefault(axis, name if name and list(pair) == sizes else own)
