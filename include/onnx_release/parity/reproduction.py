"""Reproduction bundle of a parity failure: a folder with a script that needs only numpy and ONNX Runtime."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from onnx_release.artifact.digests import fresh_folder
from onnx_release.limits import EXTERNAL_DATA_FILE, MODEL_FILE, REPRODUCTION_MODEL_MAX_BYTES, ParityLimits
from onnx_release.parity import measures
from onnx_release.parity.limits import resolve_limits
from onnx_release.parity.measures import ColumnScale
from onnx_release.parity.scales import output_scales
from onnx_release.records import Divergence
from onnx_release.runners.distribution import installed_distribution
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

# The script and the README contain these names too.
INPUTS, PYTORCH, ONNXRUNTIME, SCALES = "inputs.npz", "pytorch_outputs.npz", "onnxruntime_outputs.npz", "scales.npz"
SCRIPT, MEASURES, CASE, VERSIONS, README = "reproduce.py", "measures.py", "case.json", "versions.json", "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReproductionCase:
    """One failed comparison: inputs, outputs of both sides, limits and failures.

    Attributes:
        limits: the fields of `ParityLimits`.
        versions: the tool versions of the export.
        model: the artifact's folder.
        scales: the scales of each output's columns; without an entry, those of this sample.
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
    scales: Mapping[str, Sequence[ColumnScale]] = field(default_factory=dict)


def write_reproduction(folder: Path, case: ReproductionCase) -> tuple[Path, ...]:
    """Write the bundle as `folder`, replace an existing one, and return its files.

    The model is among them up to `REPRODUCTION_MODEL_MAX_BYTES`. Names from the model are only values in a JSON file.
    No path, array name or code is made from them.

    Raises:
        Transient: when the disk fails; no folder is left then.
    """
    limits = ParityLimits.from_dict(dict(case.limits))
    known = {**output_scales([(case.sample, case.reference)]), **case.scales}
    names = {name: index for index, name in enumerate(case.reference)}
    scales = [known.get(name, ()) for name in case.reference]
    with fresh_folder(folder) as fresh:
        _dump(
            fresh / CASE,
            {
                "inputs": _save(fresh / INPUTS, case.sample.inputs),
                "outputs": _save(fresh / PYTORCH, case.reference),
                "onnxruntime_outputs": _save(fresh / ONNXRUNTIME, case.candidate),
                "limits": [
                    resolve_limits(limits, name, array.dtype.name).to_dict() for name, array in case.reference.items()
                ],
                "uncertainties": [names.get(limits.uncertainty_of.get(name, "")) for name in case.reference],
                "axes": [[scale.axis for scale in of_output] for of_output in scales],
                "sample": case.sample.name,
                "sha256": case.sha256,
            },
        )
        every = [scale for of_output in scales for scale in of_output]
        arrays = [array for scale in every for array in (scale.spread, scale.scale, scale.rounding)]
        _save(fresh / SCALES, {str(index): array for index, array in enumerate(arrays)})
        here = {name: importlib.metadata.version(name) for name in ("numpy", "torch")}
        here |= installed_distribution() | {"python": platform.python_version(), "platform": platform.platform()}
        _dump(fresh / VERSIONS, {"compared with": here, "exported with": dict(case.versions)})
        _write(fresh / SCRIPT, _SCRIPT)
        # The bundle takes the measures of the release from the same source.
        shutil.copyfile(measures.__file__, fresh / MEASURES)
        files = [path for name in (MODEL_FILE, EXTERNAL_DATA_FILE) if (path := case.model / name).is_file()]
        with_model = sum(path.stat().st_size for path in files) <= REPRODUCTION_MODEL_MAX_BYTES
        for path in files if with_model else ():
            shutil.copyfile(path, fresh / path.name)
        _write(fresh / README, _readme(case, with_model=with_model))
    return tuple(sorted(path for path in folder.iterdir()))


def _save(path: Path, arrays: Arrays) -> list[str]:
    """Save arrays as ``arr_0``, ``arr_1``, … and return their names in that order."""
    np.savez(path, *arrays.values(), allow_pickle=False)
    return list(arrays)


def _dump(path: Path, data: object) -> None:
    _write(path, json.dumps(data, indent=2, sort_keys=True, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


_README = """\
# PyTorch and ONNX Runtime differ

Artifact {{ case.sha256 | inline }}, on the sample {{ case.sample.name | inline }}, batch {{ case.sample.batch_size }}.

## Failures

{% for failure in case.failures %}
- {{ failure | inline }}
{% endfor %}

## First difference

{% if not at %}
- no node was found that differs from PyTorch by itself
{% else %}
{% if at.node %}
- node {{ at.node | inline }} ({{ at.op_type | inline }}), first seen in the value {{ at.value | inline }}
- module {{ (at.module or "the model itself") | inline }} ({{ (at.module_type or "unknown class") | inline }})
{% endif %}
{% if at.mae is not none and at.max_abs is not none %}
- MAE {{ "%.3g" % at.mae }}, largest difference {{ "%.3g" % at.max_abs }}, scale {{ "%.3g" % (at.scale or 0.0) }}
{% endif %}
- {{ at.compared }} values compared
{% if at.note %}
- {{ at.note | inline }}
{% endif %}
{% endif %}

## Reproduce it

    pip install numpy onnxruntime
    python reproduce.py{{ "" if with_model else " path/to/" + model_file }}

The script runs the ONNX model on the CPU and prints how far each output is from PyTorch's.
It exits with 1 when an output exceeds its limits, and with 2 when there is no model to run.
{% if with_model %}
The model is in this folder.
{% else %}
The model is larger than {{ model_max_mib }} MiB and not in this folder. It is the `{{ model_file }}`, with its external
data beside it, in the work folder of the failed release. That folder is kept for some days. Later, export the training
run again with the same versions.
{% endif %}

## Files

- `inputs.npz`: the inputs of both sides, as arr_0, arr_1, …:
{% for name, array in case.sample.inputs.items() %}
    - {{ name | inline }}: {{ array.dtype }} {{ array.shape | list }}
{% endfor %}
- `pytorch_outputs.npz`, `onnxruntime_outputs.npz`: the outputs of each side, in the order of the names in `case.json`
- `measures.py`: the measures and limits of the release, with the release's own code
- `scales.npz`: the spread, scale and rounding of each output's columns over all samples
- `case.json`: names, limits and axes of columns; `versions.json`: versions of the export and of the comparison
"""


def _readme(case: ReproductionCase, *, with_model: bool) -> str:
    # Markdown is not HTML: `inline` escapes every foreign text.
    environment = jinja2.Environment(  # noqa: S701
        trim_blocks=True, lstrip_blocks=False, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["inline"] = _inline
    return environment.from_string(_README).render(
        case=case,
        at=case.divergence,
        with_model=with_model,
        model_file=MODEL_FILE,
        model_max_mib=REPRODUCTION_MODEL_MAX_BYTES // 2**20,
    )


def _inline(text: str) -> str:
    """Return foreign text as one line without Markdown syntax."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return "".join(f"\\{c}" if c in r"\`*_[]<>#|!&" else c for c in line)


_SCRIPT = '''\
"""Runs the ONNX model of this folder and compares its outputs with PyTorch's."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from measures import ColumnScale, compare_arrays

here = Path(__file__).resolve().parent
model = Path(sys.argv[1]) if len(sys.argv) > 1 else here / "model.onnx"
if not model.is_file():
    print(f"no model at {model}; usage: python reproduce.py path/to/model.onnx", file=sys.stderr)
    sys.exit(2)

case = json.loads((here / "case.json").read_text(encoding="utf-8"))
inputs = dict(zip(case["inputs"], np.load(here / "inputs.npz").values()))
references = list(np.load(here / "pytorch_outputs.npz").values())
scales = iter(np.load(here / "scales.npz").values())
session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
candidates = session.run(case["outputs"], inputs)

failed = False
for name, reference, candidate, limits, axes, of in zip(
    case["outputs"], references, candidates, case["limits"], case["axes"], case["uncertainties"]
):
    of_columns = [ColumnScale(axis, next(scales), next(scales), next(scales)) for axis in axes]
    uncertainty = None if of is None else references[of]
    compared = compare_arrays(reference, candidate, limits, of_columns, uncertainty)
    failed = failed or bool(compared.failures)
    shown = ", ".join(f"{key} {value:.3g}" for key, value in compared.measures.items() if value is not None)
    verdict = f"outside the limits: {'; '.join(compared.failures)}" if compared.failures else "within the limits"
    print(f"{name!r}: {shown or 'no measures'}; {verdict}")
sys.exit(failed)
'''
