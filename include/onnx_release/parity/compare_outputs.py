"""PyTorch's outputs against ONNX Runtime's: by name, dtype, shape, and only then by value, in float64.

What cannot be compared has failed: NaN passes any test of the form ``difference >= limit``, (3, 1) broadcasts against
(1, 3) to a difference of zero, and unsigned integers wrap around.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.errors import Refused
from onnx_release.limits import DTYPE_LIMITS, ParityLimits
from onnx_release.records import OnnxArtifact, OutputParity, ParityReport, TensorSpec
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputLimits:
    """The limits of one output, after its own and its dtype's overrides."""

    mae_max: float | None = None
    max_abs: float | None = None
    rtol: float | None = None
    atol: float | None = None
    cosine_min: float | None = None
    sqnr_min_db: float | None = None
    agreement_min: float | None = None


_FIELDS = tuple(f.name for f in fields(OutputLimits))


def limits_of(limits: ParityLimits, output: str, dtype: str) -> OutputLimits:
    """Resolve the limits of one output, in the order that `ParityLimits` says."""
    values: dict[str, float | None] = {name: getattr(limits, name) for name in _FIELDS}
    entries = (DTYPE_LIMITS.get(dtype, {}), limits.per_dtype.get(dtype, {}), limits.per_output.get(output, {}))
    for entry in entries:
        values |= entry
    return OutputLimits(**values)


def require_limits(limits: ParityLimits, outputs: Sequence[TensorSpec]) -> None:
    """Raise `Refused`, with every mistake: an override of nothing, a limit that is no number, an output without any."""
    names = [spec.name for spec in outputs]
    wrong = [f"per_output names '{name}', which is none of {names}" for name in limits.per_output if name not in names]
    wrong += [f"per_dtype names '{name}', which is no dtype" for name in limits.per_dtype if not _is_dtype(name)]
    entries: dict[str, Mapping[str, float | None]] = {"": {name: getattr(limits, name) for name in _FIELDS}}
    entries |= {f"per_output['{name}'] ": entry for name, entry in limits.per_output.items()}
    entries |= {f"per_dtype['{name}'] ": entry for name, entry in limits.per_dtype.items()}
    for where, entry in entries.items():
        wrong += [f"{where}knows no limit '{name}', only {list(_FIELDS)}" for name in entry if name not in _FIELDS]
        wrong += [f"{where}{name} is {value}" for name, value in entry.items() if not _is_limit(name, value)]
    if not wrong:
        bare = [s.name for s in outputs if not _is_limited(limits_of(limits, s.name, s.dtype), s.dtype)]
        wrong += [f"output '{name}' is left without any limit" for name in bare]
    if wrong:
        raise Refused("The parity limits", "; ".join(wrong), "Correct the parity parameters of the release.")


def _is_limited(limits: OutputLimits, dtype: str) -> bool:
    if not dtype.startswith("float"):
        return limits.agreement_min is not None
    return any(getattr(limits, name) is not None for name in _FIELDS if name != "agreement_min")


def _is_dtype(name: str) -> bool:
    try:
        return np.dtype(name).name == name
    except TypeError:
        return False


def _is_limit(name: str, value: float | None) -> bool:
    if value is None or name not in _FIELDS:
        return True
    least, most = {"cosine_min": (-1.0, 1.0), "agreement_min": (0.0, 1.0)}.get(name, (0.0, math.inf))
    return math.isfinite(value) and least <= value <= most


def scales_of(references: Iterable[Arrays]) -> dict[str, float]:
    """Return each float output's largest root mean square over these samples: what its errors are measured against."""
    scales: dict[str, float] = {}
    for outputs in references:
        for name, array in outputs.items():
            finite = array[np.isfinite(array)].astype(np.float64) if array.dtype.kind == "f" else np.empty(0)
            if finite.size:
                scales[name] = max(scales.get(name, 0.0), _rms(finite))
    return scales


def _rms(values: Array) -> float:
    largest = float(np.abs(values).max())
    # Scaled first, so that squares neither overflow nor vanish.
    return largest * float(np.sqrt(np.mean((values / largest) ** 2))) if largest else 0.0


def compare_outputs(
    reference: Arrays,
    candidate: Arrays,
    sample: Sample,
    limits: ParityLimits,
    scales: Mapping[str, float] | None = None,
) -> list[OutputParity]:
    """Compare every output that either side has; `reference` is PyTorch's side, `candidate` ONNX Runtime's.

    :param scales: from `scales_of` over all samples; without it this sample's own scale is taken.
    """
    names = [*reference, *(name for name in candidate if name not in reference)]
    known = scales_of([reference]) if scales is None else scales
    return [
        _compare(name, (reference.get(name), candidate.get(name)), sample, limits, known.get(name)) for name in names
    ]


def _compare(
    name: str, sides: tuple[Array | None, Array | None], sample: Sample, limits: ParityLimits, scale: float | None
) -> OutputParity:
    reference, candidate = sides
    shown = candidate if reference is None else reference
    assert shown is not None  # noqa: S101 - the name came from one of the two
    failures = _structure_failures(reference, candidate)
    measures = _Measures()
    if not failures and reference is not None and candidate is not None:
        measures, failures = _compare_values(reference, candidate, limits_of(limits, name, reference.dtype.name), scale)
    return OutputParity(
        output=name,
        sample=sample.name,
        batch_size=sample.batch_size,
        dtype=shown.dtype.name,
        shape=tuple(shown.shape),
        mae=measures.mae,
        max_abs=measures.max_abs,
        max_rel=measures.max_rel,
        cosine=measures.cosine,
        scale=measures.scale,
        sqnr_db=measures.sqnr_db,
        agreement=measures.agreement,
        passed=not failures,
        failures=tuple(failures),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measures:
    mae: float | None = None
    max_abs: float | None = None
    max_rel: float | None = None
    cosine: float | None = None
    scale: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None


def _structure_failures(reference: Array | None, candidate: Array | None) -> list[str]:
    if reference is None:
        return ["ONNX Runtime gives it, PyTorch does not"]
    if candidate is None:
        return ["PyTorch gives it, ONNX Runtime does not"]
    failures = []
    if reference.dtype != candidate.dtype:
        failures.append(f"dtype is {candidate.dtype}, PyTorch's is {reference.dtype}")
    if reference.shape != candidate.shape:
        failures.append(f"shape is {list(candidate.shape)}, PyTorch's is {list(reference.shape)}")
    if failures:
        return failures
    if reference.dtype.kind not in "fiub":
        return [f"dtype {reference.dtype} cannot be compared"]
    if reference.size == 0:
        return [f"has no values (shape {list(reference.shape)}), so nothing was compared"]
    return []


def _compare_values(
    reference: Array, candidate: Array, limits: OutputLimits, scale: float | None
) -> tuple[_Measures, list[str]]:
    if reference.dtype.kind in "iub":
        return _compare_exact(reference, candidate, limits)
    wide, other = reference.astype(np.float64), candidate.astype(np.float64)
    failures = _placement_failures(wide, other)
    finite = np.isfinite(wide) & np.isfinite(other)
    if not finite.any():
        return _Measures(), [*failures, "has no finite value on both sides, so nothing was compared"]
    # Two finite values can differ by infinity; no limit lets that pass.
    with np.errstate(over="ignore", invalid="ignore"):
        measures = _measure(wide[finite], other[finite], scale)
        failures += _limit_failures(measures, limits)
        failures += _tolerance_failures(wide[finite], other[finite], limits)
    return measures, failures


def _compare_exact(reference: Array, candidate: Array, limits: OutputLimits) -> tuple[_Measures, list[str]]:
    """Judge integers and booleans by how many are equal: a class index one off is as wrong as any other."""
    equal = reference == candidate
    agreement = float(equal.mean())
    difference = np.abs(reference.astype(np.float64) - candidate.astype(np.float64))
    measures = _Measures(mae=float(difference.mean()), max_abs=float(difference.max()), agreement=agreement)
    if limits.agreement_min is not None and agreement >= limits.agreement_min:
        return measures, []
    must = "all must" if limits.agreement_min in (None, 1.0) else f"at least {limits.agreement_min:.2%} must"
    return measures, [
        f"{int((~equal).sum())} of {equal.size} {reference.dtype} values differ, and {must} be equal",
    ]


def _placement_failures(reference: Array, candidate: Array) -> list[str]:
    """NaN and both infinities are values of the model when they sit at the same places, and a difference otherwise."""
    kinds = {
        "NaN": (np.isnan(reference), np.isnan(candidate)),
        "+infinity": (np.isposinf(reference), np.isposinf(candidate)),
        "-infinity": (np.isneginf(reference), np.isneginf(candidate)),
    }
    return [
        f"{kind} at {int(there.sum())} places, PyTorch's at {int(here.sum())}; {int((here != there).sum())} differ"
        for kind, (here, there) in kinds.items()
        if (here != there).any()
    ]


def _measure(reference: Array, candidate: Array, scale: float | None) -> _Measures:
    difference = np.abs(reference - candidate)
    nonzero = reference != 0.0
    scale = _rms(reference) if scale is None else scale
    return _Measures(
        mae=float(difference.mean()),
        max_abs=float(difference.max()),
        max_rel=float((difference[nonzero] / np.abs(reference[nonzero])).max()) if nonzero.any() else None,
        cosine=_cosine(reference, candidate),
        scale=scale,
        sqnr_db=_sqnr_db(scale, difference),
    )


def _sqnr_db(scale: float, difference: Array) -> float | None:
    """Return the scale over the difference's root mean square; None when either is zero, -inf for one too large."""
    error = _rms(difference)
    if error == 0.0 or scale == 0.0:
        return None
    return 20.0 * math.log10(scale / error) if math.isfinite(error) else -math.inf


def _cosine(reference: Array, candidate: Array) -> float | None:
    if np.array_equal(reference, candidate):
        return 1.0
    # Scaled to a largest value of 1 first, so that squares neither overflow nor vanish.
    scales = float(np.abs(reference).max()), float(np.abs(candidate).max())
    if 0.0 in scales:
        return None
    a, b = reference / scales[0], candidate / scales[1]
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))


def _limit_failures(measures: _Measures, limits: OutputLimits) -> list[str]:
    """Each test asks for what must hold, so that a NaN or a missing measure fails it."""
    failures = []
    scale = max(1.0, measures.scale or 0.0)
    if limits.mae_max is not None and not (measures.mae is not None and measures.mae < limits.mae_max * scale):
        of_scale = f" times the output's scale {scale:.3g}" if scale > 1.0 else ""
        failures.append(f"MAE {_text(measures.mae)} is not below {limits.mae_max:g}{of_scale}")
    if limits.max_abs is not None and not (measures.max_abs is not None and measures.max_abs <= limits.max_abs):
        failures.append(f"largest absolute difference {_text(measures.max_abs)} is above {limits.max_abs:g}")
    if limits.cosine_min is not None and not (measures.cosine is not None and measures.cosine >= limits.cosine_min):
        failures.append(f"cosine similarity {_text(measures.cosine)} is below {limits.cosine_min:g}")
    # Without a difference, or in an output that is zero throughout, there is no such ratio; the MAE is limited still.
    if limits.sqnr_min_db is not None and measures.sqnr_db is not None and not measures.sqnr_db >= limits.sqnr_min_db:
        failures.append(f"signal to noise ratio {measures.sqnr_db:.3g} dB is below {limits.sqnr_min_db:g} dB")
    return failures


def _tolerance_failures(reference: Array, candidate: Array, limits: OutputLimits) -> list[str]:
    if limits.rtol is None and limits.atol is None:
        return []
    rtol, atol = limits.rtol or 0.0, limits.atol or 0.0
    within = np.abs(reference - candidate) <= atol + rtol * np.abs(reference)
    if within.all():
        return []
    return [f"{int((~within).sum())} of {within.size} values lie outside atol {atol:g} + rtol {rtol:g} * |PyTorch's|"]


def _text(value: float | None) -> str:
    return "could not be taken and" if value is None else f"{value:.3g}"


def evaluate_parity(
    artifact: OnnxArtifact,
    comparisons: Sequence[OutputParity],
    limits: ParityLimits,
    failures: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> ParityReport:
    """Gather the comparisons into a verdict that is passed only when all of them are, and none is missing.

    Missing is: an output of the artifact that was never compared, and a batch size that the exporter did not see.

    :param failures: what else speaks against the artifact, e.g. that a side could not run a sample.
    :param notes: what was left out, and why.
    """
    found = [*failures, *_failures_per_output(comparisons), *_gaps(artifact, comparisons)]
    sizes = tuple(sorted({comparison.batch_size for comparison in comparisons}))
    return ParityReport(
        sha256=artifact.sha256,
        passed=not found,
        comparisons=tuple(comparisons),
        batch_sizes=sizes,
        unseen_batch_sizes=tuple(size for size in sizes if size != artifact.export_batch_size),
        limits=limits.to_dict(),
        failures=tuple(found),
        notes=tuple(notes),
    )


def _failures_per_output(comparisons: Sequence[OutputParity]) -> list[str]:
    """Say one line per output: the first sample that failed, and how many more did."""
    found = []
    for output in dict.fromkeys(c.output for c in comparisons):
        every = [c for c in comparisons if c.output == output]
        failed = [c for c in every if not c.passed]
        if failed:
            why = "; ".join(failed[0].failures) or "did not pass"
            where = f"({failed[0].sample}, batch {failed[0].batch_size})"
            found.append(f"output '{output}' {where}: {why}; {len(failed)} of {len(every)} comparisons failed")
    return found


def _gaps(artifact: OnnxArtifact, comparisons: Sequence[OutputParity]) -> list[str]:
    asked = {(c.sample, c.batch_size) for c in comparisons}
    gaps = []
    for spec in artifact.outputs:
        done = {(c.sample, c.batch_size) for c in comparisons if c.output == spec.name}
        if not done:
            gaps.append(f"output '{spec.name}' was never compared")
        elif done != asked:
            gaps.append(f"output '{spec.name}' was compared on {len(done)} of {len(asked)} samples")
    if not comparisons:
        gaps.append("nothing was compared")
    elif all(c.batch_size == artifact.export_batch_size for c in comparisons):
        gaps.append(f"no batch size was compared but {artifact.export_batch_size}, the one that the exporter saw")
    return gaps
