"""Model folders in MLflow's format: the PyTorch one that a training run left, the ONNX one that a release writes.

Only the format is MLflow's business here; no server is asked, and no model is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from mlflow.models import Model
from mlflow.types import Schema
from mlflow.types import TensorSpec as MlflowTensorSpec

from onnx_release.errors import Refused
from onnx_release.limits import MODEL_SUFFIXES
from onnx_release.records import TensorSpec
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.input_spec import InputSpec
from onnx_release.trained.scan_torchscript import is_script_archive

_SIGN = (
    "Log the model again with mlflow.pytorch.log_model(..., signature=ModelSignature(inputs=Schema([TensorSpec("
    "np.dtype('float32'), (-1, ...), 'name')]), outputs=...)), each tensor named and -1 for its batch."
)
_RELOG = "Log the model again with mlflow.pytorch.log_model; if the download was cut short, clear 'export'."


Kind = Literal["pt2", "pickle", "torchscript", "state_dict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPackage:
    """What a training run left: where the model's bytes lie, and what is said of its inputs and outputs.

    `kind` is ``pt2`` (an exported program), ``pickle`` (code runs when it is loaded), ``torchscript`` or ``state_dict``
    (weights alone). `inputs_from` says who described the inputs, and `unnamed` which side of the signature has no
    names. `outputs` are empty where nobody described them: they are then what the model gives. `code_paths` are the
    folders that the pickled class is imported from. `example` is keyed by input name, in the inputs' dtypes; `ranges`
    bound what is made up.
    """

    kind: Kind
    data_path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Arrays | None
    pytorch_version: str
    code_paths: tuple[Path, ...] = ()
    inputs_from: Literal["signature", "input_spec", "example"] = "signature"
    unnamed: tuple[Literal["input", "output"], ...] = ()
    ranges: dict[str, InputSpec] = field(default_factory=dict)


def read_trained(folder: Path, input_spec: Sequence[InputSpec] = ()) -> TrainedPackage:
    """Read the folder of an MLflow PyTorch model, as MLflow 3 (pt2 or pickle) or 2 (pickle) wrote it, or a bare file.

    The inputs are those of `input_spec`, else of the model's signature, else of its input example. A single tensor
    without a name is called ``input`` or ``output``. The first varying dimension of a tensor is ``batch``, others are
    called after the tensor and their axis.

    :param folder: a folder with an ``MLmodel``; or a file of a model or of weights, or a folder with just one such.
    :raises Refused: when it is no PyTorch model, or nobody describes its inputs, or a file of it is missing or broken.
    """
    if (file := _bare_file(folder)) is not None:
        return _read_file(file, input_spec)
    model = _read_mlmodel(folder)
    flavor = model.flavors.get("pytorch")
    if not isinstance(flavor, Mapping):
        found = ", ".join(sorted(model.flavors)) or "none"
        raise Refused(f"model folder {folder}", f"has no pytorch flavor (found: {found})", _RELOG)
    kind, data_path = _find_data(folder, str(flavor.get("model_data") or "data"))
    inputs, inputs_from = _inputs(model, folder, input_spec)
    return TrainedPackage(
        kind=kind,
        data_path=data_path,
        inputs=inputs,
        outputs=_outputs(model),
        example=_read_example(model, folder, inputs),
        pytorch_version=str(flavor.get("pytorch_version") or "unknown"),
        code_paths=(_inside(folder, str(flavor["code"])),) if flavor.get("code") else (),
        inputs_from=inputs_from,
        unnamed=_unnamed(model),
        ranges={spec.name: spec for spec in input_spec},
    )


def _unnamed(model: Model) -> tuple[Literal["input", "output"], ...]:
    sides: list[tuple[Literal["input", "output"], Schema | None]] = []
    if model.signature is not None:
        sides = [("input", model.signature.inputs), ("output", model.signature.outputs)]
    return tuple(side for side, schema in sides if schema is not None and not schema.has_input_names())


def _bare_file(path: Path) -> Path | None:
    if path.is_file():
        return path
    if not path.is_dir() or (path / "MLmodel").exists():
        return None
    files = [file for file in path.iterdir() if file.is_file() and file.suffix in MODEL_SUFFIXES]
    return files[0] if len(files) == 1 else None


def _read_file(path: Path, input_spec: Sequence[InputSpec]) -> TrainedPackage:
    if not input_spec:
        raise Refused(
            f"model file {path.name}",
            "stands alone: nothing says what the model takes",
            "Describe its inputs by the parameter `input_spec`: "
            '[{"name": "x", "dtype": "float32", "shape": ["batch", 3, 224, 224]}].',
        )
    # Needs torch, which who reads a package alone does not.
    from onnx_release.trained.state_dict import kind_of_file

    return TrainedPackage(
        kind=kind_of_file(path),
        data_path=path,
        inputs=tuple(spec.tensor() for spec in input_spec),
        outputs=(),
        example=None,
        pytorch_version="unknown",
        inputs_from="input_spec",
        ranges={spec.name: spec for spec in input_spec},
    )


def _inputs(
    model: Model, folder: Path, input_spec: Sequence[InputSpec]
) -> tuple[tuple[TensorSpec, ...], Literal["signature", "input_spec", "example"]]:
    if input_spec:
        return tuple(spec.tensor() for spec in input_spec), "input_spec"
    if model.signature is None and model.saved_input_example_info is not None:
        path = _inside(folder, str(model.saved_input_example_info.get("artifact_path")))
        with _reading(path):
            return _inputs_of_example(model.load_input_example(str(folder))), "example"
    return _read_schema(model.signature and model.signature.inputs, "input"), "signature"


def _inputs_of_example(example: Any) -> tuple[TensorSpec, ...]:
    """Describe an example: its first dimension varies; JSON keeps no precision, so floats are taken for float32."""
    named = dict(example) if isinstance(example, Mapping) else {"input": example}
    specs = []
    for name, value in named.items():
        array = np.asarray(value)
        if array.dtype.kind not in "fiub" or array.ndim == 0:
            raise TypeError(f"input {str(name)!r:.80} is {array.dtype} of shape {array.shape}, no tensor with a batch")
        dtype = "float32" if array.dtype == np.float64 else array.dtype.name
        specs.append(TensorSpec(name=str(name), dtype=dtype, shape=("batch", *array.shape[1:])))
    return tuple(specs)


def _outputs(model: Model) -> tuple[TensorSpec, ...]:
    if model.signature is None or model.signature.outputs is None:
        return ()
    return _read_schema(model.signature.outputs, "output")


def read_example(folder: Path) -> Arrays:
    """Return the input example of a folder that `write_package` wrote; raises `Refused` when there is none."""
    model = _read_mlmodel(folder)
    inputs = _read_schema(model.signature and model.signature.inputs, "input")
    example = _read_example(model, folder, inputs)
    if example is None:
        raise Refused(f"model folder {folder}", "has no input example", "Rerun the export, which writes one.")
    return example


def _read_mlmodel(folder: Path) -> Model:
    path = folder / "MLmodel"
    if not path.is_file():
        raise Refused(f"model folder {folder}", "has no file MLmodel, so it is no MLflow model", _RELOG)
    with _reading(path):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or not isinstance(data.get("flavors"), dict):
            raise TypeError("it has no flavors")
        return Model.from_dict(data)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader of YAML, JSON or MLflow's schemas raises on a broken file into `Refused`."""
    try:
        yield
    except Exception as error:  # foreign readers on foreign data share no base class of errors
        raise Refused(f"file {path}", f"cannot be read: {' '.join(str(error).split())[:300]}", _RELOG) from error


def _find_data(folder: Path, model_data: str) -> tuple[Kind, Path]:
    data = _inside(folder, model_data)
    if (data / "model.pt2").is_file():
        return "pt2", _inside(folder, f"{model_data}/model.pt2")
    if (data / "model.pth").is_file():
        path = _inside(folder, f"{model_data}/model.pth")
        return ("torchscript" if is_script_archive(path) else "pickle"), path
    raise Refused(f"model folder {folder}", f"has neither model.pt2 nor model.pth in {model_data!r:.200}", _RELOG)


def _inside(folder: Path, relative: str) -> Path:
    """Return the path; raises `Refused` when it leads out of the folder: an MLmodel is data from elsewhere."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise Refused(f"model folder {folder}", f"names the path {relative!r:.200}, which leads out of it", _RELOG)
    return path


def _read_schema(schema: Schema | None, unnamed: str) -> tuple[TensorSpec, ...]:
    if schema is None or not schema.inputs:
        raise Refused("The model's signature", f"names no {unnamed}s", _SIGN)
    if not schema.is_tensor_spec():
        raise Refused("The model's signature", f"has columns, not tensors, for its {unnamed}s", _SIGN)
    names = schema.input_names() if schema.has_input_names() else [unnamed]
    if len(names) != len(schema.inputs) or len(set(names)) != len(names):
        raise Refused("The model's signature", f"does not give each {unnamed} a name of its own", _SIGN)
    return tuple(_tensor_spec(str(name), tensor) for name, tensor in zip(names, schema.inputs, strict=True))


def _tensor_spec(name: str, tensor: MlflowTensorSpec) -> TensorSpec:
    shape: list[int | str] = []
    for axis, size in enumerate(tensor.shape):
        if size >= 0:
            shape.append(int(size))
        else:
            shape.append(f"{name}_dim{axis}" if "batch" in shape else "batch")
    return TensorSpec(name=name, dtype=str(np.dtype(tensor.type)), shape=tuple(shape))


def _read_example(model: Model, folder: Path, inputs: Sequence[TensorSpec]) -> Arrays | None:
    info = model.saved_input_example_info
    if info is None:
        return None
    path = _inside(folder, str(info.get("artifact_path")))
    with _reading(path):
        return _named(model.load_input_example(str(folder)), inputs)


def _named(example: Any, inputs: Sequence[TensorSpec]) -> Arrays:
    """Give the example's arrays their inputs' names and dtypes: MLflow keeps JSON, which has neither."""
    if isinstance(example, Mapping):
        values = {str(name): value for name, value in example.items()}
    elif isinstance(example, list | tuple) and len(example) == len(inputs) > 1:
        values = {spec.name: value for spec, value in zip(inputs, example, strict=True)}
    elif len(inputs) == 1:
        values = {inputs[0].name: example}
    else:
        raise ValueError(f"it is one {type(example).__name__}, and the signature names {len(inputs)} inputs")
    if unlike := sorted(set(values) ^ {spec.name for spec in inputs}):
        raise ValueError(f"its names and the signature's differ in {', '.join(unlike)}")
    return {spec.name: np.asarray(values[spec.name], dtype=spec.dtype) for spec in inputs}
