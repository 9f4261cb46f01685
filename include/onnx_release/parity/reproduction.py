"""A folder with which a person sees a parity failure again, with nothing but numpy and ONNX Runtime."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from onnx_release.artifact.digests import fresh_folder
from onnx_release.limits import EXTERNAL_DATA_FILE, MODEL_FILE, REPRODUCTION_MODEL_MAX_BYTES, ParityLimits
from onnx_release.parity.compare_outputs import OutputLimits, limits_of, scales_of
from onnx_release.records import Divergence
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

# The script and the README hold these names too.
INPUTS, PYTORCH, ONNXRUNTIME = "inputs.npz", "pytorch_outputs.npz", "onnxruntime_outputs.npz"
SCRIPT, MEASURE, CASE, VERSIONS, README = "reproduce.py", "measure.py", "case.json", "versions.json", "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproductionCase:
    """One failed comparison: what both sides were fed, what each gave, and what was held against it.

    `limits` are the fields of `ParityLimits`, `scales` each output's as `OutputParity` has them (those of this sample
    when left out), `model` is the artifact's folder, and `versions` are those that it was exported with.
    """

    sample: Sample
    reference: Arrays
    candidate: Arrays
    limits: Mapping[str, Any]
    failures: Sequence[str]
    divergence: Divergence | None
    versions: Mapping[str, str]
    model: Path
    sha256: str
    scales: Mapping[str, float] = field(default_factory=dict)


def write_reproduction(folder: Path, case: ReproductionCase) -> tuple[Path, ...]:
    """Write the bundle as `folder`, in the place of what is there, and return its files.

    The model is among them up to `REPRODUCTION_MODEL_MAX_BYTES`. Names from the model are only ever values in a JSON
    file: neither a path, nor the name of an array, nor code is made from one.

    :raises Transient: when the disk fails; nothing is left then.
    """
    with fresh_folder(folder) as fresh:
        names = {
            "inputs": _save(fresh / INPUTS, case.sample.inputs),
            "outputs": _save(fresh / PYTORCH, case.reference),
            "onnxruntime_outputs": _save(fresh / ONNXRUNTIME, case.candidate),
        }
        _dump(fresh / CASE, {**names, "limits": _applied(case), "sample": case.sample.name, "sha256": case.sha256})
        _dump(fresh / VERSIONS, {"compared with": _versions_here(), "exported with": dict(case.versions)})
        _text(fresh / SCRIPT, _SCRIPT)
        _text(fresh / MEASURE, _MEASURE)
        _text(fresh / README, _readme(case, with_model=_copy_model(case.model, fresh)))
    return tuple(sorted(path for path in folder.iterdir()))


def _save(path: Path, arrays: Arrays) -> list[str]:
    """Save arrays as ``arr_0``, ``arr_1``, … and return their names in that order."""
    np.savez(path, *arrays.values(), allow_pickle=False)
    return list(arrays)


def _dump(path: Path, data: object) -> None:
    _text(path, json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n")


def _text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def _applied(case: ReproductionCase) -> list[dict[str, Any]]:
    """Return what each output's measures may be at most and at least, in the order of the outputs."""
    limits = ParityLimits.from_dict(dict(case.limits))
    scales = {**scales_of([case.reference]), **case.scales}
    return [
        _bounds(limits_of(limits, name, array.dtype.name), scales.get(name, 0.0), exact=array.dtype.kind in "iub")
        for name, array in case.reference.items()
    ]


def _bounds(limits: OutputLimits, scale: float, *, exact: bool) -> dict[str, Any]:
    """Say with plain bounds what `parity` applies: relative limits are made absolute, strict ones moved by a bit."""
    if exact:
        return {
            "most": {},
            "least": {"agreement": 1.0 if limits.agreement_min is None else limits.agreement_min},
            "rtol": 0.0,
        }
    mae, sqnr = limits.mae_max, limits.sqnr_min_db
    tolerant = limits.rtol is not None or limits.atol is not None
    most = _given(
        mae=None if mae is None else math.nextafter(mae * max(1.0, scale), -math.inf),
        max_abs=limits.max_abs,
        rms=None if sqnr is None or not scale else scale * 10.0 ** (-sqnr / 20.0),
        excess=(limits.atol or 0.0) if tolerant else None,
    )
    return {"most": most, "least": _given(cosine=limits.cosine_min), "rtol": limits.rtol or 0.0}


def _given(**limits: float | None) -> dict[str, float]:
    return {name: limit for name, limit in limits.items() if limit is not None}


def _versions_here() -> dict[str, str]:
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime", "torch")}
    return {**packages, "python": platform.python_version(), "platform": platform.platform()}


def _copy_model(source: Path, target: Path) -> bool:
    files = [path for name in (MODEL_FILE, EXTERNAL_DATA_FILE) if (path := source / name).is_file()]
    fits = sum(path.stat().st_size for path in files) <= REPRODUCTION_MODEL_MAX_BYTES
    if fits:
        for path in files:
            shutil.copyfile(path, target / path.name)
    return fits


_README = """\
# PyTorch and ONNX Runtime differ

Artifact {sha256}, on the sample {sample}, batch {batch_size}.

## What failed

{failures}

## Where it begins

{where}

## See it again

    pip install numpy onnxruntime
    python reproduce.py{argument}

It runs the ONNX model on the CPU and prints how far each output is from what PyTorch gave. It exits with 1 when one is
outside the limits, and with 2 when there is no model to run. {model}

## Files

- `inputs.npz`: what both sides were fed, as arr_0, arr_1, …:
{inputs}
- `pytorch_outputs.npz`, `onnxruntime_outputs.npz`: what each gave, in the order of the names in `case.json`
- `measure.py`: how far two outputs are apart, by the measures that the release took
- `case.json`: names and limits; `versions.json`: what the model was exported and compared with
"""
_MODEL_HERE = "The model is in this folder."
_MODEL_ELSEWHERE = f"""
The model is larger than {REPRODUCTION_MODEL_MAX_BYTES // 2**20} MiB and not in this folder. It is the `{MODEL_FILE}`,
with its external data beside it, in the failed release's work folder, which is kept for some days. Later, export the
training run again with the same versions."""


def _readme(case: ReproductionCase, *, with_model: bool) -> str:
    inputs = [f"{_inline(name)}: {array.dtype} {list(array.shape)}" for name, array in case.sample.inputs.items()]
    return _README.format(
        sha256=_inline(case.sha256),
        sample=_inline(case.sample.name),
        batch_size=case.sample.batch_size,
        failures="\n".join(f"- {_inline(failure)}" for failure in case.failures),
        where="\n".join(f"- {line}" for line in _where(case.divergence)),
        argument="" if with_model else f" path/to/{MODEL_FILE}",
        model=_MODEL_HERE if with_model else _MODEL_ELSEWHERE,
        inputs="\n".join(f"    - {line}" for line in inputs),
    )


def _where(found: Divergence | None) -> list[str]:
    if found is None:
        return ["no node was found that differs from PyTorch by itself"]
    lines = []
    if found.node:
        lines.append(f"node {_inline(found.node)} ({_inline(found.op_type)}), seen in the value {_inline(found.value)}")
        lines.append(f"module {_inline(found.module or 'the model itself')} ({_inline(found.module_type)})")
    if found.mae is not None and found.max_abs is not None:
        lines.append(f"MAE {found.mae:.3g}, largest difference {found.max_abs:.3g}, scale {found.scale or 0.0:.3g}")
    return [*lines, f"{found.compared} values compared", *([_inline(found.note)] if found.note else [])]


def _inline(text: str) -> str:
    """Return foreign text as one line that Markdown shows as it is."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"\\{c}" if c in r"\`*_[]<>#|!&" else c for c in line)


_SCRIPT = """\
import json, sys
from pathlib import Path
import numpy as np, onnxruntime
from measure import is_outside, model_path

here = Path(__file__).resolve().parent
case = json.loads((here / "case.json").read_text(encoding="utf-8"))
inputs, pytorch = (list(np.load(here / name).values()) for name in ("inputs.npz", "pytorch_outputs.npz"))
session = onnxruntime.InferenceSession(model_path(here), providers=["CPUExecutionProvider"])
found = session.run(case["outputs"], dict(zip(case["inputs"], inputs)))
sys.exit(any([is_outside(*output) for output in zip(case["outputs"], case["limits"], pytorch, found)]))
"""

_MEASURE = """\
import sys
import numpy as np


def model_path(here):
    path = sys.argv[1] if len(sys.argv) > 1 else str(here / "model.onnx")
    try:
        open(path, "rb").close()
    except OSError:
        print(f"no model at {path}; usage: python reproduce.py path/to/model.onnx", file=sys.stderr)
        sys.exit(2)
    return path


def is_outside(name, limits, pytorch, onnx):
    got = measure(pytorch, onnx, limits["rtol"])
    # A measure that is NaN compares as False, so these ask for what must hold.
    broken = [f"{key} above {most:g}" for key, most in limits["most"].items() if not got or not got[key] <= most]
    broken += [f"{key} below {least:g}" for key, least in limits["least"].items() if not got or not got[key] >= least]
    shown = ", ".join(f"{key} {value:.3g}" for key, value in got.items()) or f"is {onnx.dtype} {onnx.shape}"
    print(f"{name!r}: {shown}; {'outside: ' + ', '.join(broken) if broken else 'within the limits'}")
    return bool(broken) or not got


def measure(pytorch, onnx, rtol):
    if (pytorch.shape, pytorch.dtype) != (onnx.shape, onnx.dtype):
        return {}
    a, b = pytorch.astype(np.float64), onnx.astype(np.float64)
    kept = np.isfinite(a) | ~((a == b) | np.isnan(a) & np.isnan(b))  # all but NaN and infinity in the same places
    a, b = a[kept], b[kept]
    if not a.size:
        return {}
    error = np.abs(a - b)
    rms, cosine = np.sqrt(np.mean(error**2)), 1.0 if (a == b).all() else a @ b / np.sqrt((a @ a) * (b @ b))
    excess, agreement = (error - rtol * np.abs(a)).max(), np.mean(pytorch == onnx)
    return dict(mae=error.mean(), max_abs=error.max(), rms=rms, excess=excess, cosine=cosine, agreement=agreement)
"""
