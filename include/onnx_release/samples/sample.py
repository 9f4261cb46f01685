"""One set of model inputs for a comparison or a measurement."""

from __future__ import annotations

from dataclasses import dataclass

from onnx_release.trained.arrays import Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Inputs of one model call.

    Attributes:
        name: The source of the values, the same at every batch size: ``example``, ``seed 0``, ``zeros``, …
        inputs: One array per input, in the input's dtype.
        batch_size: The size of the batch dimension of every input that has one. For inputs without a common batch it
            is the factor of their leading dimensions (see `Dimensions`).
        probing: True for invented inputs beyond the training run's example, such as extreme values. A probing sample
            is skipped, with a note, when PyTorch fails on it or returns NaN.
        decides: False for invented values that no training run may ever have seen (zeros, extremes). A difference on
            such a sample is a warning of the report and never a failure.
        seeded: True for random values at the sizes of the example. Such a sample is skipped, with a warning, when
            PyTorch fails on its values.
        varied: The dimensions whose size differs from the example's.
    """

    name: str
    inputs: Arrays
    batch_size: int
    probing: bool = False
    decides: bool = True
    seeded: bool = False
    varied: tuple[str, ...] = ()
