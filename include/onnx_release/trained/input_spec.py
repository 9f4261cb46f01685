"""What a person says of a model's inputs where the training run does not, or not enough: the parameter `input_spec`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

from pydantic import Field

from onnx_release.errors import Refused
from onnx_release.records import TensorSpec
from onnx_release.records.base import Record

_DTYPES = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
}  # fmt: skip
_DIMENSION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FORM = (
    'Give a list such as [{"name": "ids", "dtype": "int64", "shape": ["batch", "length"], "vocabulary_size": 30522}, '
    '{"name": "image", "dtype": "float32", "shape": ["batch", 3, 224, 224], "low": 0, "high": 1}].'
)


class InputSpec(Record):
    """One input: numpy's dtype, and a shape whose varying dimensions have names; the first one named is the batch.

    Samples of it lie within `low` and `high`, both included; `vocabulary_size` is short for 0 to one below it. `sizes`
    are the sizes to test a varying dimension at (``{"length": [8, 64]}``), where the usual ones do not suit.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    low: float | None = None
    high: float | None = None
    vocabulary_size: int | None = None
    sizes: dict[str, tuple[int, ...]] = Field(default_factory=dict)

    def tensor(self) -> TensorSpec:
        """Return name, dtype and shape alone."""
        return TensorSpec(name=self.name, dtype=self.dtype, shape=self.shape)

    def bounds(self) -> tuple[float, float] | None:
        """Return the least and the largest value, or None when nothing was said of either."""
        if self.vocabulary_size is not None:
            return 0, self.vocabulary_size - 1
        if self.low is None and self.high is None:
            return None
        low = self.low if self.low is not None else min(0.0, self.high or 0.0)
        return low, self.high if self.high is not None else max(low + 1.0, 1.0)


def parse_input_spec(given: object) -> tuple[InputSpec, ...]:
    """Read a list, or its JSON; None and empty text are no specification.

    :raises Refused: naming every mistake, with the form that is expected.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except ValueError as error:
            raise Refused("input_spec", f"is no JSON ({error}): {given!r:.120}", _FORM) from error
    if given is None or given == []:
        return ()
    if not isinstance(given, list | tuple):
        raise Refused("input_spec", f"is {given!r:.120}, not a list of inputs", _FORM)
    specs = tuple(InputSpec.from_dict(entry) for entry in given)
    wrong = [problem for spec in specs for problem in _problems(spec)]
    if len({spec.name for spec in specs}) != len(specs):
        wrong.append(f"two inputs share a name: {[spec.name for spec in specs]}")
    if wrong:
        raise Refused("input_spec", "; ".join(wrong), _FORM)
    return specs


def _problems(spec: InputSpec) -> Iterator[str]:
    label = f"input {spec.name!r:.80}"
    if not spec.name:
        yield "an input has no name"
    if spec.dtype not in _DTYPES:
        yield f"{label} has dtype {spec.dtype!r:.40}, none of {', '.join(sorted(_DTYPES))}"
    for size in spec.shape:
        if isinstance(size, int) and size < 1:
            yield f"{label} has a dimension of {size}: name a dimension that varies"
        if isinstance(size, str) and not _DIMENSION.fullmatch(size):
            yield f"{label} has a dimension called {size!r:.80}: use letters, digits and underscores"
    yield from _range_problems(spec, label)


def _range_problems(spec: InputSpec, label: str) -> Iterator[str]:
    if spec.vocabulary_size is not None:
        if spec.vocabulary_size < 1 or not spec.dtype.startswith(("int", "uint")):
            yield f"{label} has vocabulary_size {spec.vocabulary_size}: at least 1, and for an integer dtype"
        if spec.low is not None or spec.high is not None:
            yield f"{label} has vocabulary_size and low or high: give one of the two"
    bounds = spec.bounds()
    if bounds is not None and not (all(map(math.isfinite, bounds)) and bounds[0] <= bounds[1]):
        yield f"{label} has values from {bounds[0]} to {bounds[1]}"
    for name, sizes in spec.sizes.items():
        if name not in spec.shape or not sizes or min(sizes) < 1:
            yield f"{label} has sizes {list(sizes)} for {name!r:.80}: some, at least 1 each, of a dimension that it has"
