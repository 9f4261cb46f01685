"""An entry of the zoo: a model, its format, its call, and the expected result of its release."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from onnx_release.limits import ParityLimits
from onnx_release.records import TensorSpec
from onnx_release.samples.dimensions import Dimensions
from onnx_release.samples.draw import seeded_arrays
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.input_spec import InputSpec

Store = Literal[
    "pt2", "pickle", "mlflow 2", "script", "trace", "state dict", "safetensors", "lightning", "wrapped checkpoint",
    "half checkpoint", "two networks",
]  # fmt: skip
# Formats without a model: the release makes it with the entry's `make`.
WEIGHT_STORES = ("state dict", "safetensors", "lightning", "wrapped checkpoint", "half checkpoint", "two networks")
EXAMPLE_SEED = 5
EXAMPLE_BATCH = 4
EXAMPLE_SIZE = 12


@dataclass(frozen=True, slots=True)
class Exported:
    """A successful release by this export strategy."""

    rung: str

    def __str__(self) -> str:
        return self.rung


@dataclass(frozen=True, slots=True)
class RefusedFor:
    """A refused release. `code` is that of the refusal or of a finding; `part` is a part of the message, or empty."""

    code: str
    part: str = ""

    def __str__(self) -> str:
        return f"refused: {self.code}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One model.

    `make` builds it, weights seeded; it is trained for `steps` steps unless 0, then `finish` has the last word (to cast
    it, say). `inputs` and `outputs` make the signature; `sizes` are the example's, by the name of a dimension, where
    `EXAMPLE_BATCH` and `EXAMPLE_SIZE` do not suit. `mode` is how the training script left it. Without `signed` the
    folder has no signature, without `exampled` no example; with `described` the release is told the inputs by the
    parameter `input_spec`. A store without code (a state dict) names `make` as its factory, so that is a function or
    class of a module here.
    """

    name: str
    field: str
    about: str
    make: Callable[[], nn.Module]
    inputs: tuple[InputSpec, ...]
    outputs: tuple[TensorSpec, ...] = ()
    store: Store
    expected: Exported | RefusedFor
    call: Literal["in order", "by name", "one dict"] = "in order"
    steps: int = 3
    finish: Callable[[nn.Module], nn.Module] | None = None
    mode: Literal["eval", "train"] = "eval"
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    signed: bool = True
    exampled: bool = True
    described: bool = False
    limits: ParityLimits = dataclasses.field(default_factory=ParityLimits)

    def example(self) -> Arrays:
        """Return one seeded array for each input, within its range."""
        names = {size for spec in self.inputs for size in spec.shape if isinstance(size, str)}
        sizes = dict.fromkeys(names, EXAMPLE_SIZE) | {"batch": EXAMPLE_BATCH} | dict(self.sizes)
        ranges = {spec.name: spec for spec in self.inputs}
        tensors = [spec.tensor() for spec in self.inputs]
        return seeded_arrays(Dimensions.of(tensors), sizes, EXAMPLE_SEED, None, ranges)


def floats(name: str, *shape: int | str, low: float = -2.0, high: float = 2.0) -> InputSpec:
    """Describe a float32 input whose values lie evenly from `low` to `high`."""
    return InputSpec(name=name, dtype="float32", shape=shape, low=low, high=high)


def tokens(name: str, *shape: int | str, vocabulary: int) -> InputSpec:
    """Describe an int64 input of row numbers of an embedding."""
    return InputSpec(name=name, dtype="int64", shape=shape, vocabulary_size=vocabulary)


def gives(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    """Describe an output."""
    return TensorSpec(name=name, dtype=np.dtype(dtype).name, shape=shape)
