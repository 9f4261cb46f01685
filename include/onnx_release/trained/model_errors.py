"""Kinds of errors that a model raises in PyTorch, each with a code and the action that removes it."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

_LIBRARIES = ("/torch/", "/onnx_release/", "/onnxscript/", "/contextlib.py", "<")

_DTYPE = re.compile(
    r"must have the same dtype|should be the same|expected scalar type|expected m1 and m2|scalar types: |"
    r"tensors used as indices must be|can't be cast to the desired|cannot be cast|same data ?type|"
    r"not implemented for '\w+'|expected .{0,40}dtype|expected \w+ but (?:found|got) \w+|"
    r"(?:Half|Float|Double|BFloat16|Long|Int|Bool)(?:Tensor)? (?:and|but got) ",
)
_INDEX = re.compile(r"index out of range|index \S+ is out of bounds|indices element out of", re.IGNORECASE)
_SIZE = re.compile(
    r"shape|size|dimension|\bdims?\b|length|channel|width|height|\b[1-9]\d* ?x ?\d+|\.ndim|batch", re.IGNORECASE
)
_ARGUMENTS = re.compile(r"(missing \d+ required|unexpected keyword|takes \d+ positional|multiple values for)")

_SIZES = (
    "Write -1 in the signature only for sizes that may vary, and the fixed size for every other. The model must run at "
    "the batch sizes of the parameter `batch_sizes`."
)


class ModelError(NamedTuple):
    """Kind of an error: its code, and the action for the author of the model."""

    code: str
    action: str


class Place(NamedTuple):
    """Line of the model's own code. `text` is empty if the file is not readable."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        """Return the file name and the line, with its text: never the folder, which is one of the worker."""
        return f"{self.file}, line {self.line}" + (f": `{self.text}`" if self.text else "")


def classify(error: BaseException, inputs: Mapping[str, str], weights: Callable[[], set[str]]) -> ModelError:
    """Return the kind of an error that a model raised.

    Args:
        error: The error.
        inputs: The dtype of each input by its name.
        weights: Returns the dtypes of the model's float weights.
    """
    text = str(error)
    if isinstance(error, RuntimeError | TypeError) and _DTYPE.search(text):
        return ModelError("dtype_mismatch", _dtype_action(inputs, weights()))
    if _INDEX.search(text):
        return ModelError(
            "rejected_values",
            "An index is larger than its table. Log the model with an input example, or give the range with the "
            "parameter `input_spec`: `vocabulary_size`, or `low` and `high`.",
        )
    if "more than 1 value per channel" in text:
        return ModelError(
            "model_failed",
            "A batch norm without running statistics needs 2 rows or more. Use track_running_stats=True, or another "
            "normalisation such as GroupNorm.",
        )
    if isinstance(error, TypeError) and _ARGUMENTS.search(text):
        return ModelError("model_failed", "Give each input in the signature the name of its argument in `forward`.")
    place = where_raised(error)
    own_check = isinstance(error, AssertionError | ValueError) and place is not None
    if own_check and not _SIZE.search(f"{text} {place.text if place else ''}"):
        return ModelError(
            "rejected_values",
            "The model checks the values of its input. Remove the check from `forward`, or give the range of the input "
            "with `low` and `high` of the parameter `input_spec`.",
        )
    if own_check or _SIZE.search(text):
        return ModelError("model_failed", _SIZES)
    return ModelError("model_failed", "Call the model with this input in a shell: it must run in evaluation mode.")


def where_raised(error: BaseException) -> Place | None:
    """Return the last line of the model's own code in the traceback of an error, or None."""
    found, traceback = None, error.__traceback__
    while traceback is not None:
        path = traceback.tb_frame.f_code.co_filename
        if not any(part in path for part in _LIBRARIES):
            found = (path, traceback.tb_lineno)
        traceback = traceback.tb_next
    if found is None:
        return None
    text = linecache.getline(*found) if found[0].endswith(".py") else ""
    return Place(Path(found[0]).name, found[1], text.strip()[:100])


def float_dtypes(model: torch.nn.Module | torch.export.ExportedProgram) -> set[str]:
    """Return the dtypes of the float parameters of a model."""
    floats = (tensor.dtype for tensor in model.parameters() if tensor.is_floating_point())
    return {str(dtype).removeprefix("torch.") for dtype in floats}


def _dtype_action(inputs: Mapping[str, str], weights: set[str]) -> str:
    dtypes = ", ".join(f"'{name}' {dtype}" for name, dtype in inputs.items())
    own = " and ".join(sorted(weights)) or "no float dtype"
    return (
        f"The signature gives {dtypes}; the weights are {own}. Write the dtype that the model takes into the signature "
        "or into the parameter `input_spec`. Or cast in `forward`, or log `model.float()`."
    )
