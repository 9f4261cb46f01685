"""The run's own measure of a model: its metric on a sample of inputs with the answers that were wanted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.errors import Refused
from onnx_release.limits import CALIBRATION_ROWS_MAX, EVALUATION_BATCH_SIZE
from onnx_release.records import TensorSpec
from onnx_release.runners import Runner
from onnx_release.samples.edge_cases import read_arrays
from onnx_release.samples.generate import batch_axis, checked_example
from onnx_release.trained.arrays import Arrays

Array = npt.NDArray[Any]

TARGET = "target."
# A sample of fewer rows than twice these is not divided.
_DIVIDED_ROWS_MIN = 4
_FORM = (
    "Save it with numpy.savez(path, **{input name: array, 'target.<output name>': array, …}), floats for a regression, "
    "class indices for a classification, every array with the same number of rows."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """The metric of one output: ``MAE``, of which less is better, or ``accuracy``, over the classes of `axis`."""

    name: str
    axis: int | None = None

    def loss(self, reference: float, candidate: float) -> float:
        """Return how much worse the candidate is, as a part of the reference's figure; negative when it is better."""
        worse = candidate - reference if self.name == "MAE" else reference - candidate
        if worse == 0.0:
            return 0.0
        return worse / reference if reference else math.copysign(math.inf, worse)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Inputs, the targets by output, and what each is measured by."""

    inputs: Arrays
    targets: Arrays
    metrics: dict[str, Metric]
    specs: tuple[TensorSpec, ...]
    rows: int

    def divided(self) -> tuple[Arrays | None, Evaluation]:
        """Return rows to calibrate with, and the rest to measure with: who has seen an exam cannot sit it.

        A sample too small to be divided is kept whole, and gives None to calibrate with.
        """
        seen = min(self.rows // 2, CALIBRATION_ROWS_MAX)
        if seen < _DIVIDED_ROWS_MIN:
            return None, self
        first, rest = (self._rows(np.arange(a, b)) for a, b in ((0, seen), (seen, self.rows)))
        targets = {name: array[seen:] for name, array in self.targets.items()}
        return first, replace(self, inputs=rest, targets=targets, rows=self.rows - seen)

    def measure(self, runner: Runner) -> dict[str, float]:
        """Run the whole sample and return the metric of each output that has targets; NaN counts as it is."""
        parts: dict[str, list[Array]] = {name: [] for name in self.targets}
        for batch in self._batches():
            outputs = runner.run(batch)
            for name, found in parts.items():
                found.append(outputs[name])
        return {name: self._figure(name, np.concatenate(found)) for name, found in parts.items()}

    def _batches(self) -> Iterator[Arrays]:
        for first in range(0, self.rows, EVALUATION_BATCH_SIZE):
            yield self._rows(np.arange(first, min(first + EVALUATION_BATCH_SIZE, self.rows)))

    def _rows(self, rows: Array) -> Arrays:
        axes = {spec.name: batch_axis(spec) for spec in self.specs}
        return {
            name: array.copy() if (axis := axes[name]) is None else array.take(rows, axis=axis)
            for name, array in self.inputs.items()
        }

    def _figure(self, name: str, output: Array) -> float:
        metric, target = self.metrics[name], self.targets[name]
        if metric.name == "MAE":
            return float(np.abs(output.astype(np.float64) - target).mean())
        answers = output if metric.axis is None else output.argmax(axis=metric.axis)
        # An index says nothing where the model gave no number at all.
        sound = np.ones(answers.shape, bool) if metric.axis is None else ~np.isnan(output).any(axis=metric.axis)
        return float(((answers == target) & sound).mean())


def read_evaluation(path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Evaluation:
    """Read an evaluation sample: an array per input under its name, and ``target.<output>`` for one output or more.

    :raises Refused: when it is no such file, holds pickled objects, or does not fit the model.
    """
    subject = f"evaluation sample {path.name!r:.200}"
    arrays = read_arrays(path, subject, _FORM)
    targets = {key.removeprefix(TARGET): array for key, array in arrays.items() if key.startswith(TARGET)}
    sample = checked_example(inputs, {k: v for k, v in arrays.items() if not k.startswith(TARGET)}, subject)
    specs = {spec.name: spec for spec in outputs}
    wrong = [f"has a target for '{name:.80}', which is no output" for name in targets if name not in specs]
    wrong += [] if targets else [f"has no array called {TARGET}<output>"]
    metrics: dict[str, Metric] = {}
    for name in targets.keys() & specs.keys():
        metric, problem = _metric(targets[name], specs[name], sample.batch_size)
        wrong += [problem] if metric is None else []
        metrics |= {name: metric} if metric is not None else {}
    if wrong:
        raise Refused(subject, "; ".join(wrong), _FORM)
    return Evaluation(
        inputs=sample.inputs, targets=targets, metrics=metrics, specs=tuple(inputs), rows=sample.batch_size
    )


def _metric(target: Array, spec: TensorSpec, rows: int) -> tuple[Metric | None, str]:
    """Return what a target is measured by, or what is wrong with it."""
    label, shape = f"target '{spec.name}'", list(target.shape)
    if target.ndim == 0 or target.shape[0] != rows:
        return None, f"{label} of shape {shape} has not one row for each of the {rows} rows of the inputs"
    if target.dtype.kind == "f":
        if not _same(target.shape, spec.shape):
            return None, f"{label} of shape {shape} does not fit the output's {list(spec.shape)}"
        finite = bool(np.isfinite(target).all())
        return (Metric(name="MAE"), "") if finite else (None, f"{label} holds NaN or infinity")
    if target.dtype.kind not in "iub":
        return None, f"{label} is {target.dtype}, neither floats nor integers"
    if len(spec.shape) == target.ndim and not spec.dtype.startswith("float") and _same(target.shape, spec.shape):
        return Metric(name="accuracy"), ""
    # The classes are where PyTorch's losses want them, in the second dimension, before anywhere else.
    for axis in range(1, len(spec.shape)):
        if _same(target.shape, (*spec.shape[:axis], *spec.shape[axis + 1 :])):
            return Metric(name="accuracy", axis=axis), ""
    return None, f"{label} of shape {shape} is no output {list(spec.shape)} without its classes"


def _same(shape: tuple[int, ...], spec: tuple[int | str, ...]) -> bool:
    return len(shape) == len(spec) and all(
        isinstance(wanted, str) or size == wanted for size, wanted in zip(shape, spec, strict=True)
    )
