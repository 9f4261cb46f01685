"""Trained models in MLflow's model format, and bare model files.

Only MLflow's file format is used here: no server is contacted and no model is loaded.
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

from onnx_release.errors import TrainedModelRefused
from onnx_release.limits import INDEX_SUFFIXES, MLMODEL_MAX_BYTES, MODEL_SUFFIXES
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.records import TensorSpec
from onnx_release.text import shorten
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.input_spec import InputSpec
from onnx_release.trained.scan_torchscript import is_script_archive
from onnx_release.trained.signature import Side, read_schema, with_dimension_names
from onnx_release.training_runs import refusals

_RELOG = "Log the model again with mlflow.pytorch.log_model. If the download was cut short, repeat the export."

Format = Literal["pt2", "pickle", "torchscript", "state_dict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPackage:
    """The files of a trained model and the description of its inputs and outputs.

    Attributes:
        format: The file format: ``pt2`` (an exported program), ``pickle`` (loading it runs code), ``torchscript`` or
            ``state_dict`` (weights without a model).
        data_path: The file of the model or of its weights.
        inputs: The inputs. The first varying dimension of each is ``batch``, if the inputs share a batch.
        outputs: The outputs; empty when they are not described. The model then names them.
        example: One array per input, in the inputs' dtypes, or None.
        listed_example: The values of an example without names, in the order of the model's arguments.
        pytorch_version: The version of torch that wrote the file, or ``unknown``.
        code_paths: The folders to import the pickled class from.
        inputs_from: The source of the inputs.
        columns: The columns of the table that the single input stands for; empty without a table.
        unnamed: The sides of the signature whose single tensor has no name.
        ranges: The ranges of generated values by input name.
    """

    format: Format
    data_path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Arrays | None
    pytorch_version: str
    listed_example: tuple[Any, ...] = ()
    code_paths: tuple[Path, ...] = ()
    inputs_from: Literal["signature", "input_spec", "example"] = "signature"
    columns: tuple[str, ...] = ()
    unnamed: tuple[Side, ...] = ()
    ranges: dict[str, InputSpec] = field(default_factory=dict)


def read_trained(folder: Path, input_spec: Sequence[InputSpec] = ()) -> TrainedPackage:
    """Read the description of a trained model.

    The inputs come from `input_spec`, else from the model's signature, else from its input example. A single tensor
    without a name becomes ``input`` or ``output``. The first varying dimension of a tensor is ``batch``; others are
    named after the tensor and the axis. If the first varying dimensions of the inputs differ in the example, they are
    not a batch, and each has its own name. A table of numbers is one input, as MLflow gives it to the model.

    Args:
        folder: An MLflow model folder of MLflow 3 (pt2 or pickle) or 2 (pickle), a file of a model or of weights, or a
            folder with exactly one such file, or with an index (``model.safetensors.index.json``) and its files.
        input_spec: The description of the inputs; required for a bare file.

    Returns:
        The description. Its `data_path` is not opened.

    Raises:
        TrainedModelRefused: The folder is not a PyTorch model, its inputs are not described, or a file of it is missing
            or broken.
    """
    file: Path | None = folder if folder.is_file() else None
    if folder.is_dir() and not (folder / "MLmodel").exists():
        files = [path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(MODEL_SUFFIXES)]
        indexes = [path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(INDEX_SUFFIXES)]
        # An index names its files; all of them are one model.
        file = next((found[0] for found in (indexes, files) if len(found) == 1), None)
    if file is None:
        return _read_folder(folder, input_spec)
    if not input_spec:
        raise refusals.no_input_spec(f"The model file {file.name}")
    # Imported here because it needs torch, which readers of an artifact folder do not load.
    from onnx_release.trained.state_dict import format_of_file

    return TrainedPackage(
        format=format_of_file(file),
        data_path=file,
        inputs=tuple(spec.tensor() for spec in input_spec),
        outputs=(),
        example=None,
        pytorch_version="unknown",
        inputs_from="input_spec",
        ranges={spec.name: spec for spec in input_spec},
    )


def _read_folder(folder: Path, input_spec: Sequence[InputSpec]) -> TrainedPackage:
    model = _read_mlmodel(folder)
    flavor = model.flavors.get("pytorch")
    if not isinstance(flavor, Mapping):
        found = ", ".join(sorted(model.flavors)) or "none"
        raise _refused("The MLflow model", f"has no pytorch flavor (found: {found})", "no_pytorch_flavor")
    file_format: Format = "pt2"
    model_data = str(flavor.get("model_data") or "data")
    data = _inside(folder, model_data)
    if (data / "model.pt2").is_file():
        data_path = _inside(folder, f"{model_data}/model.pt2")
    elif (data / "model.pth").is_file():
        data_path = _inside(folder, f"{model_data}/model.pth")
        file_format = "torchscript" if is_script_archive(data_path) else "pickle"
    else:
        problem = f"has neither model.pt2 nor model.pth in {model_data!r:.200}"
        raise _refused("The model folder", problem, "no_model_file")
    schemas: dict[Side, Schema | None] = {"input": None, "output": None}
    if model.signature is not None:
        schemas = {"input": model.signature.inputs, "output": model.signature.outputs}
    columns = _table_columns(model, folder) if not input_spec else ()
    # A table of outputs has the names of its columns, and none for the tensor.
    of_table = schemas["output"] is not None and bool(columns or input_spec) and not schemas["output"].is_tensor_spec()
    described = schemas["output"] is not None and not of_table
    inputs, inputs_from = _inputs(model, folder, input_spec, columns)
    outputs = read_schema(schemas["output"], "output") if described else ()
    example, listed_example = _read_example(model, folder, inputs)
    inputs, outputs = with_dimension_names(inputs, outputs, example)
    return TrainedPackage(
        format=file_format,
        data_path=data_path,
        inputs=inputs,
        outputs=outputs,
        example=example,
        listed_example=listed_example,
        pytorch_version=str(flavor.get("pytorch_version") or "unknown"),
        code_paths=(_inside(folder, str(flavor["code"])),) if flavor.get("code") else (),
        inputs_from=inputs_from,
        columns=columns,
        unnamed=tuple(side for side, schema in schemas.items() if schema is not None and not schema.has_input_names()),
        ranges={spec.name: spec for spec in input_spec},
    )


def read_example(folder: Path) -> Arrays:
    """Return the input example of an artifact folder, which `mlflow_package.write_package` wrote.

    Raises:
        TrainedModelRefused: The folder has no example, or a file of it is broken.
    """
    model = _read_mlmodel(folder)
    inputs = read_schema(model.signature and model.signature.inputs, "input")
    example, _ = _read_example(model, folder, inputs)
    if example is None:
        action = "Clear the task 'export', which writes one."
        raise TrainedModelRefused("The artifact folder", "has no input example", action, code="no_example")
    return example


def read_signature(folder: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs in the signature of a packaged ONNX model. A dimension that varies is -1.

    Raises:
        TrainedModelRefused: The folder has no readable file MLmodel, or no signature of named tensors.
    """
    signature = _read_mlmodel(folder).signature
    sides = (signature.inputs, signature.outputs) if signature else (None, None)
    return read_schema(sides[0], "input"), read_schema(sides[1], "output")


def _inputs(
    model: Model, folder: Path, input_spec: Sequence[InputSpec], columns: Sequence[str]
) -> tuple[tuple[TensorSpec, ...], Literal["signature", "input_spec", "example"]]:
    if input_spec:
        return tuple(spec.tensor() for spec in input_spec), "input_spec"
    if columns:
        return (TensorSpec(name="input", dtype="float32", shape=(-1, len(columns))),), "signature"
    if model.signature is not None or model.saved_input_example_info is None:
        return read_schema(model.signature and model.signature.inputs, "input"), "signature"
    specs = []
    path = _inside(folder, str(model.saved_input_example_info.get("artifact_path")))
    with _reading(path):
        example = model.load_input_example(str(folder))
        for name, value in (example if isinstance(example, Mapping) else {"input": example}).items():
            array = np.asarray(value)
            if array.dtype.kind not in "fiub" or array.ndim == 0:
                raise TypeError(f"{str(name)!r:.80} has dtype {array.dtype} and shape {array.shape}, without a batch")
            # JSON keeps no precision, and most models compute in float32.
            dtype = "float32" if array.dtype == np.float64 else array.dtype.name
            specs.append(TensorSpec(name=str(name), dtype=dtype, shape=(-1, *array.shape[1:])))
    return tuple(specs), "example"


def _read_mlmodel(folder: Path) -> Model:
    path = folder / "MLmodel"
    if not path.is_file():
        raise _refused("The model folder", "has no file MLmodel", "no_mlmodel")
    return read_mlmodel(path)


def read_mlmodel(path: Path) -> Model:
    """Read a file MLmodel.

    Raises:
        TrainedModelRefused: `unreadable_file`, also for a file that is too large, or is so after its aliases of YAML.
    """
    with _reading(path):
        if (size := path.stat().st_size) > MLMODEL_MAX_BYTES:
            raise ValueError(f"it has {size / 1e6:.3g} MB; the limit is {MLMODEL_MAX_BYTES / 1e6:.3g} MB")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if _value_count(data, {}) > MLMODEL_MAX_BYTES:
            raise ValueError("its aliases repeat values more than a million times")
        if not isinstance(data, dict) or not isinstance(data.get("flavors"), dict):
            raise TypeError("it has no flavors")
        return Model.from_dict(data)


def _value_count(value: Any, counted: dict[int, int]) -> int:
    """Return the number of nested values. A list that aliases repeat is visited once, and counts each time."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counted:
        # An alias inside of its own list has no end.
        counted[id(value)] = MLMODEL_MAX_BYTES + 1
        items = value.values() if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_value_count(item, counted) for item in items)
    return counted[id(value)]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Refuse a file when a reader of YAML, JSON or MLflow's schemas raises anything."""
    try:
        yield
    except Exception as error:  # the readers' errors share no base class
        raise_machine_failure(error)
        raise _refused(f"The file {path.name}", f"cannot be read: {shorten(error)}", "unreadable_file") from error


def _refused(subject: str, problem: str, code: str) -> TrainedModelRefused:
    return TrainedModelRefused(subject, problem, _RELOG, code=code)


def _inside(folder: Path, relative: str) -> Path:
    """Return a path in the folder. The MLmodel file is data from elsewhere, so a path that leaves it is refused."""
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        problem = f"names the path {relative!r:.200} outside its folder"
        raise _refused("The MLflow model", problem, "path_outside_folder")
    return path


def _table_columns(model: Model, folder: Path) -> tuple[str, ...]:
    """Return the columns of a signature of numbers whose example is a table; empty for every other signature.

    MLflow gives a table to a PyTorch model as one float32 array with these columns.
    """
    schema = model.signature.inputs if model.signature is not None else None
    info = model.saved_input_example_info or {}
    if schema is None or schema.is_tensor_spec() or info.get("type") != "dataframe" or not schema.has_input_names():
        return ()
    path = _inside(folder, str(info.get("artifact_path")))
    with _reading(path):
        table = model.load_input_example(str(folder))
        kinds = {np.dtype(dtype).kind if isinstance(dtype, np.dtype) else "O" for dtype in table.dtypes}
        same = list(map(str, table.columns)) == list(map(str, schema.input_names()))
    return tuple(map(str, table.columns)) if same and kinds <= set("fiub") else ()


def _read_example(model: Model, folder: Path, inputs: Sequence[TensorSpec]) -> tuple[Arrays | None, tuple[Any, ...]]:
    """Return the example by input name, in the inputs' dtypes, or the values of an example without names.

    MLflow's JSON has neither dtypes nor, for a list of several inputs, names.
    """
    info = model.saved_input_example_info
    if info is None:
        return None, ()
    path = _inside(folder, str(info.get("artifact_path")))
    with _reading(path):
        example = model.load_input_example(str(folder))
        if isinstance(example, Mapping):
            values = {str(name): value for name, value in example.items()}
        elif isinstance(example, list | tuple) and len(example) == len(inputs) > 1:
            return None, tuple(example)
        elif len(inputs) == 1:
            values = {inputs[0].name: example}
        else:
            raise ValueError(f"it is one {type(example).__name__}, and the signature names {len(inputs)} inputs")
        if differing := sorted(set(values) ^ {spec.name for spec in inputs}):
            raise ValueError(f"its names and the signature's names differ in {', '.join(differing)}")
        return {spec.name: np.asarray(values[spec.name], dtype=spec.dtype) for spec in inputs}, ()
