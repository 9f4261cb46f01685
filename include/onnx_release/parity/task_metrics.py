"""Task metric of a model on an evaluation sample: inputs with their targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from onnx_release.errors import TuningRefused
from onnx_release.limits import CALIBRATION_ROWS_MAX, EVALUATION_BATCH_SIZE
from onnx_release.records import TensorSpec
from onnx_release.runners import Runner
from onnx_release.samples.dimensions import batch_axes
from onnx_release.samples.edge_cases import read_arrays
from onnx_release.samples.generate import checked_example
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

Array = npt.NDArray[Any]

TARGET = "target."
"""Prefix of the targets' names in the file."""

# A sample is only split if it has at least twice as many rows.
_SPLIT_ROWS_MIN = 4
_SAVE_SAMPLE = (
    "Save it with numpy.savez(path, **{input name: array, 'target.<output name>': array, …}), floats for a regression, "
    "class indices for a classification, every array with the same number of rows."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMetric:
    """Metric of one output: the mean absolute error (``MAE``), or the ``accuracy`` over the classes along `axis`.

    With an `axis` of None the output has class indices itself.
    """

    name: Literal["MAE", "accuracy"]
    axis: int | None = None

    def measure(self, output: Array, target: Array) -> float:
        """Return the metric of an output. NaN among the classes is never right; NaN in a regression gives NaN."""
        if self.name == "MAE":
            return float(np.abs(output.astype(np.float64) - target).mean())
        if self.axis is None:
            return float((output == target).mean())
        numbers = ~np.isnan(output).any(axis=self.axis)
        return float(((output.argmax(axis=self.axis) == target) & numbers).mean())

    def loss(self, reference: float, variant: float) -> float:
        """Return the loss of the variant relative to the reference's metric; negative if the variant is better."""
        worse = variant - reference if self.name == "MAE" else reference - variant
        if worse == 0.0:
            return 0.0
        return worse / reference if reference else math.copysign(math.inf, worse)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSample:
    """Inputs, and the targets and metrics of one or more outputs.

    `specs` are the model's inputs. `rows` is the batch size of the whole sample.
    """

    inputs: Arrays
    targets: Arrays
    metrics: dict[str, TaskMetric]
    specs: tuple[TensorSpec, ...]
    rows: int

    def split(self) -> tuple[Arrays | None, EvaluationSample]:
        """Return calibration inputs, and the other rows for the metric.

        Rows of the calibration would give a metric that is too good. A sample of few rows is not split; its calibration
        inputs are None.
        """
        count = min(self.rows // 2, CALIBRATION_ROWS_MAX)
        if count < _SPLIT_ROWS_MIN:
            return None, self
        targets = {name: array[count:] for name, array in self.targets.items()}
        rest = replace(self, inputs=self._inputs(count, self.rows), targets=targets, rows=self.rows - count)
        return self._inputs(0, count), rest

    def measure(self, runner: Runner) -> dict[str, float]:
        """Run the sample in batches and return the metric of each output that has targets."""
        parts: dict[str, list[Array]] = {name: [] for name in self.targets}
        for first in range(0, self.rows, EVALUATION_BATCH_SIZE):
            outputs = runner.run(self._inputs(first, min(first + EVALUATION_BATCH_SIZE, self.rows)))
            for name, found in parts.items():
                found.append(outputs[name])
        return {
            name: self.metrics[name].measure(np.concatenate(found), self.targets[name]) for name, found in parts.items()
        }

    def _inputs(self, first: int, end: int) -> Arrays:
        axes = batch_axes(self.specs)
        return {
            name: array.copy() if (axis := axes[name]) is None else array.take(np.arange(first, end), axis=axis)
            for name, array in self.inputs.items()
        }


def read_evaluation_inputs(path: Path, inputs: Sequence[TensorSpec]) -> Sample:
    """Read the inputs of an evaluation sample.

    Args:
        path: as for `read_evaluation_sample`.
        inputs: the inputs of the model.

    Raises:
        SampleRefused: the file cannot be read, contains pickled objects, or its inputs do not fit the model.
    """
    subject = f"The evaluation sample {path.name!r:.200}"
    arrays = read_arrays(path, subject, _SAVE_SAMPLE)
    found = checked_example(inputs, {k: a for k, a in arrays.items() if not k.startswith(TARGET)}, subject)
    return replace(found, name="evaluation")


def read_evaluation_sample(path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> EvaluationSample:
    """Read an evaluation sample.

    Args:
        path: an ``.npz`` file with one array per input, under its name, and ``target.<output>`` for some outputs.
        inputs: the inputs of the model.
        outputs: the outputs of the model.

    Raises:
        SampleRefused: the file cannot be read, contains pickled objects, or its inputs do not fit the model.
        TuningRefused: `target_mismatch`, if the targets do not fit the outputs.
    """
    subject = f"The evaluation sample {path.name!r:.200}"
    arrays = read_arrays(path, subject, _SAVE_SAMPLE)
    targets = {key.removeprefix(TARGET): a for key, a in arrays.items() if key.startswith(TARGET)}
    sample = checked_example(inputs, {k: a for k, a in arrays.items() if not k.startswith(TARGET)}, subject)
    specs = {spec.name: spec for spec in outputs}
    problems = [f"has a target for '{name:.80}', which is not an output" for name in targets if name not in specs]
    problems += [] if targets else [f"has no array named {TARGET}<output>"]
    metrics: dict[str, TaskMetric] = {}
    for name in targets.keys() & specs.keys():
        metric = _metric_for(targets[name], specs[name], sample.batch_size)
        if isinstance(metric, str):
            problems.append(f"has a target '{name:.80}' {metric}")
        else:
            metrics[name] = metric
    if problems:
        raise TuningRefused(subject, "; ".join(problems), _SAVE_SAMPLE, code="target_mismatch")
    return EvaluationSample(
        inputs=sample.inputs, targets=targets, metrics=metrics, specs=tuple(inputs), rows=sample.batch_size
    )


def _metric_for(target: Array, spec: TensorSpec, rows: int) -> TaskMetric | str:
    """Return the metric for a target, or the problem of the target."""
    shape = list(target.shape)
    if target.ndim == 0 or target.shape[0] != rows:
        return f"of shape {shape}, without one row for each of the {rows} rows of the inputs"
    if target.dtype.kind == "f":
        if not _same_shape(target.shape, spec.shape):
            return f"of shape {shape}, which does not fit the output's {list(spec.shape)}"
        return TaskMetric(name="MAE") if np.isfinite(target).all() else "with NaN or infinity"
    if target.dtype.kind not in "iub":
        return f"of dtype {target.dtype}, which is neither floats nor integers"
    if not spec.dtype.startswith("float") and _same_shape(target.shape, spec.shape):
        return TaskMetric(name="accuracy")
    # PyTorch's losses have the classes in the second dimension, so that one is tried first.
    for axis in range(1, len(spec.shape)):
        if _same_shape(target.shape, (*spec.shape[:axis], *spec.shape[axis + 1 :])):
            return TaskMetric(name="accuracy", axis=axis)
    return f"of shape {shape}, which is not the output's {list(spec.shape)} without its classes"


def _same_shape(shape: tuple[int, ...], spec: tuple[int | str, ...]) -> bool:
    """Compare a shape with a spec, in which a name stands for any size."""
    return len(shape) == len(spec) and all(
        isinstance(expected, str) or size == expected for size, expected in zip(shape, spec, strict=True)
    )
