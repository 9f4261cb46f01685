"""The release parameter `input_spec`: a description of the model's inputs that replaces or completes its signature."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence

from pydantic import Field

from onnx_release.errors import ParameterRefused
from onnx_release.records import TensorSpec
from onnx_release.records.base import Record
from onnx_release.trained.dimension_names import identifiers, is_computed

_DTYPES = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
}  # fmt: skip
_DIMENSION_LENGTH_MAX = 200
_SUBJECT = "The parameter `input_spec`"
_ACTION = (
    'Write a list such as [{"name": "ids", "dtype": "int64", "shape": ["batch", "length"], "vocabulary_size": 30522}, '
    '{"name": "image", "dtype": "float32", "shape": ["batch", 3, 224, 224], "low": 0, "high": 1}].'
)


class InputSpec(Record):
    """One input of the model.

    Attributes:
        name: The name of the input.
        dtype: The name of numpy's dtype.
        shape: The sizes. A varying dimension has a name instead of a size. The dimension ``batch`` is the batch, else
            the first varying one. Different names are different sizes.
        low: The smallest value of samples.
        high: The largest value of samples.
        vocabulary_size: The number of token ids; short for values from 0 to one less.
        sizes: The sizes of a varying dimension to compare at, such as ``{"length": [8, 64]}``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    low: float | None = None
    high: float | None = None
    vocabulary_size: int | None = None
    sizes: dict[str, tuple[int, ...]] = Field(default_factory=dict)

    def tensor(self) -> TensorSpec:
        """Return name, dtype and shape."""
        return TensorSpec(name=self.name, dtype=self.dtype, shape=self.shape)

    def bounds(self) -> tuple[float, float] | None:
        """Return the smallest and the largest value, or None without a range."""
        if self.vocabulary_size is not None:
            return 0, self.vocabulary_size - 1
        if self.low is None and self.high is None:
            return None
        low = self.low if self.low is not None else min(0.0, self.high or 0.0)
        return low, self.high if self.high is not None else max(low + 1.0, 1.0)

    def problems(self) -> Iterator[str]:
        """Yield the mistakes in this description, as phrases for a message."""
        label = f"input {self.name!r:.80}"
        if not self.name:
            yield "an input has no name"
        if self.dtype not in _DTYPES:
            yield f"{label} has dtype {self.dtype!r:.40}, none of {', '.join(sorted(_DTYPES))}"
        for size in self.shape:
            if isinstance(size, int) and size < 1:
                yield f"{label} has a dimension of {size}; a dimension that varies needs a name"
            if isinstance(size, str) and not (size.strip() and len(size) <= _DIMENSION_LENGTH_MAX):
                limit = _DIMENSION_LENGTH_MAX
                yield f"{label} has a dimension named {size!r:.80}; a name has 1 to {limit} characters"
        if self.vocabulary_size is not None:
            if self.vocabulary_size < 1 or not self.dtype.startswith(("int", "uint")):
                yield f"{label} has vocabulary_size {self.vocabulary_size}; it must be at least 1, for an integer dtype"
            if self.low is not None or self.high is not None:
                yield f"{label} has vocabulary_size and also low or high; remove one of the two"
        bounds = self.bounds()
        if bounds is not None and not (all(map(math.isfinite, bounds)) and bounds[0] <= bounds[1]):
            yield f"{label} has values from {bounds[0]} to {bounds[1]}"
        yield from (
            f"{label} has sizes {list(sizes)} for {name!r:.80}; name one of its dimensions, with sizes from 1"
            for name, sizes in self.sizes.items()
            if name not in self.shape or not sizes or min(sizes) < 1
        )


def parse_input_spec(value: object) -> tuple[InputSpec, ...]:
    """Read the parameter.

    Args:
        value: A list of dicts or its JSON text. None, an empty list or an empty text: not given.

    Raises:
        ParameterRefused: The value is malformed. The message lists every mistake and shows the form.
        RecordRefused: An input has an unknown field or a field of another type.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError as error:
            raise ParameterRefused(
                _SUBJECT, f"is not JSON ({error}): {value!r:.120}", _ACTION, code="input_spec"
            ) from error
    if value is None or value == []:
        return ()
    if not isinstance(value, list | tuple):
        raise ParameterRefused(_SUBJECT, f"is {value!r:.120}, not a list of inputs", _ACTION, code="input_spec")
    specs = tuple(InputSpec.from_dict(entry) for entry in value)
    problems = [problem for spec in specs for problem in spec.problems()]
    if len({spec.name for spec in specs}) != len(specs):
        problems.append(f"two inputs share a name: {[spec.name for spec in specs]}")
    if problems:
        raise ParameterRefused(_SUBJECT, f"is wrong: {'; '.join(problems)}", _ACTION, code="input_spec")
    return _with_identifiers(specs)


def input_spec_text(inputs: Iterable[TensorSpec]) -> str:
    """Return the parameter for inputs, to be copied from a message."""
    return json.dumps([{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in inputs])


def _with_identifiers(specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """Give the varying dimensions names that torch and ONNX accept. Computed ones (``length + 1``) keep theirs."""
    every = dict.fromkeys(size for spec in specs for size in spec.shape if isinstance(size, str))
    names = identifiers(name for name in every if not is_computed(name, every))
    return tuple(
        spec.replace(
            shape=tuple(names.get(size, size) if isinstance(size, str) else size for size in spec.shape),
            sizes={names.get(name, name): sizes for name, sizes in spec.sizes.items()},
        )
        for spec in specs
    )
