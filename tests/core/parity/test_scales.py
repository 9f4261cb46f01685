"""Differences against the spread of their own column: offsets, columns of unlike size, channels, constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnx_release.limits import ParityLimits
from onnx_release.parity.compare_outputs import compare_outputs
from onnx_release.parity.measures import MAE_MAX_LITERAL_BELOW, compare_arrays
from onnx_release.parity.scales import output_scales
from onnx_release.records import OutputParity
from onnx_release.samples.sample import Sample

Array = npt.NDArray[Any]
ROWS = 32


def _values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def _compared(
    reference: Array, candidate: Array, dtype: str = "float32", *, noisy: Array | None = None
) -> OutputParity:
    """Compare one output; `noisy` is PyTorch's output for the same rows at another batch size."""
    cases = [(Sample(name="example", inputs={}, batch_size=len(reference)), {"y": reference.astype(dtype)})]
    if noisy is not None:
        cases.append((Sample(name="example", inputs={}, batch_size=len(noisy)), {"y": noisy.astype(dtype)}))
    scales = output_scales(cases)
    (result,) = compare_outputs(cases[0][1], {"y": candidate.astype(dtype)}, cases[0][0], ParityLimits(), scales)
    return result


def _offset(off: float, offset: float = 5.02e6, spread: float = 10.0) -> tuple[Array, Array]:
    right = offset + spread * _values(ROWS, 1)
    return right, right + off


OFFSETS = np.array([432000.0, 5021000.0])
MAP = np.concatenate([OFFSETS + 10 * _values(ROWS, 2), _values(ROWS, 1)], axis=1)
UNLIKE = _values(ROWS, 6) * np.array([1e6, 1e3, 1.0, 1e-3, 1e-5, 1e-6])
CHANNELS = np.stack([300 + 200 * _values(ROWS, 9), 0.01 * _values(ROWS, 9)], axis=1)


def _off(values: Array, where: tuple[Any, ...], by: float) -> Array:
    changed = values.copy()
    changed[where] += by * np.resize([1.0, -1.0], changed[where].shape)
    return changed


@pytest.mark.parametrize(
    ("reference", "candidate", "column"),
    [
        (*_offset(4.0), 0),
        (*_offset(1.5), 0),
        (MAP, _off(MAP, (..., 0), 0.2), 0),
        (MAP, _off(MAP, (..., 1), 2.0), 1),
        (MAP, _off(MAP, (..., 2), 1e-4), 2),
        (MAP, _off(MAP, (3, 2), 0.01), 2),
        *[
            (UNLIKE, _off(UNLIKE, (..., index), 0.5 * scale), index)
            for index, scale in ((0, 1e6), (3, 1e-3), (5, 1e-6))
        ],
        (np.tile(_values(ROWS, 1), 100), _off(np.tile(_values(ROWS, 1), 100), (..., 57), 1e-4), 57),
        (CHANNELS, _off(CHANNELS, (slice(None), 1), 0.001), 1),
        (np.tile([1.0, 2e-3], (ROWS, 1)), np.tile([1.0, 2.1e-3], (ROWS, 1)), 1),
        (np.full((ROWS, 1), 20.0), np.full((ROWS, 1), 20.001), 0),
        (_values(ROWS, 3) * 1e-12, _values(ROWS, 3) * 1e-12 + 1e-14, None),
    ],
)
def test_an_error_in_one_column_fails_whatever_the_others_are(
    reference: Array, candidate: Array, column: int | None
) -> None:
    result = _compared(reference, candidate)
    assert not result.passed
    assert result.worst_column is not None
    assert result.worst_column.share > 1
    assert column is None or result.worst_column.index == column


def _rounded(model: Callable[[Array], Array], steps: float = 0.0) -> tuple[Array, Array]:
    """Return a right model's output in float64, and off by a few float32 steps of it."""
    values = model(_values(ROWS, 4))
    return values, values * (1 + steps * 1.2e-7 * np.resize([1.0, -1.0, 0.5], values.shape))


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (MAP, MAP),
        _rounded(lambda x: OFFSETS.repeat(2) + 10 * x, 0.9),
        _rounded(lambda x: 290 + 5 * x, 1.5),
        _rounded(lambda x: 2020 + 0.1 * x, 1.5),
        _rounded(lambda x: np.exp(12 + x), 10),
        _rounded(lambda x: x * np.array([1e6, 1.0, 1e-6, 1e-12]), 10),
        _rounded(lambda x: 1e-12 * x, 10),
        # A constant: learned deviations that do not depend on the input.
        _rounded(lambda x: np.tile([0.05, 1.0, 3.0, 20.0], (ROWS, 1)), 1.5),
        # A deep network with fresh weights returns nearly the same for every input.
        _rounded(lambda x: 0.1 + 1e-7 * x, 8),
        # Sigmoid and softplus far from their centre: exact to a step at 1.
        (1e-3 + 1e-4 * _values(ROWS, 5), 1e-3 + 1e-4 * _values(ROWS, 5) + 8e-8),
        # A feature that is zero on nearly every input.
        (np.eye(ROWS, 3) * 1e-6 + [0, 0.3, 0.4], np.eye(ROWS, 3) * 1e-6 + [1e-7, 0.3, 0.4]),
    ],
)
def test_rounding_passes_in_every_column(reference: Array, candidate: Array) -> None:
    result = _compared(reference, candidate)
    assert result.passed, result.failures


def test_rounding_of_half_precision_passes_and_a_large_difference_fails() -> None:
    values = 100 + _values(ROWS, 2)
    assert _compared(values, values + 0.06, "float16").passed
    assert not _compared(values, values + 0.6, "float16").passed


def test_pytorchs_own_rounding_between_batch_sizes_raises_the_limit_of_its_column_only() -> None:
    offset = np.concatenate([3000 + 0.1 * _values(ROWS, 1), _values(ROWS, 1)], axis=1)
    off = _off(offset, (..., 0), 2e-3)
    noisy = np.concatenate([_off(offset, (..., 0), 1e-3), offset])
    assert not _compared(offset, off).passed
    assert _compared(offset, off, noisy=noisy).passed
    assert not _compared(offset, _off(off, (..., 1), 1e-3), noisy=noisy).passed


def test_rows_that_depend_on_their_batch_do_not_raise_a_limit() -> None:
    values = _values(ROWS, 3)
    assert not _compared(values, values + 0.01, noisy=np.concatenate([values, values]) + 0.5).passed


def test_an_axis_whose_size_varies_has_no_columns() -> None:
    cases = [
        (Sample(name="example", inputs={}, batch_size=2), {"y": np.asarray(_values(2, 3, length), np.float32)})
        for length in (5, 7)
    ]
    assert [scale.axis for scale in output_scales(cases)["y"]] == [1]
    flat = [(sample, {"y": outputs["y"][:, 0]}) for sample, outputs in cases]
    assert [scale.axis for scale in output_scales(flat)["y"]] == [None]


def test_only_samples_that_decide_make_the_scale() -> None:
    decides = Sample(name="example", inputs={}, batch_size=2)
    invented = Sample(name="extremes", inputs={}, batch_size=2, decides=False)
    small, large = ({"y": np.asarray(factor * _values(2, 3), np.float32)} for factor in (1.0, 1e6))
    (scale,) = output_scales([(decides, small), (invented, large)])["y"]
    assert scale.spread.max() < 10


def test_a_limit_below_the_default_is_taken_literally() -> None:
    reference = np.linspace(1.0, 2.0, 12, dtype=np.float32).reshape(6, 2)
    candidate = np.nextafter(reference, np.float32(3.0))
    scales = output_scales([(Sample(name="example", inputs={}, batch_size=6), {"y": reference})])["y"]
    limits = ParityLimits()
    assert limits.mae_max == MAE_MAX_LITERAL_BELOW
    assert not compare_arrays(reference, candidate, limits.to_dict(), scales).failures
    strict = limits.replace(mae_max=1e-12)
    [failure] = compare_arrays(reference, candidate, strict.to_dict(), scales).failures
    assert "is not below 1e-12" in failure
