"""Content of a checkpoint file, read without its code: tensors, plain values, and stand-ins for all other objects."""

from __future__ import annotations

import argparse
import datetime
import io
import json
import pathlib
import pickle
import pickletools
import re
import types
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from onnx_release.errors import TrainedModelRefused
from onnx_release.limits import INDEX_SUFFIXES, MODEL_SUFFIXES
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.text import shorten

# A file of torch 1.5 or older is a sequence of pickles: a magic number, two headers, the content, the storages.
_PICKLES_OF_A_LEGACY_FILE = 5
# Tensors that are spread over processes.
_DISTRIBUTED = ("torch.distributed.tensor.", "torch.distributed._tensor.", "torch.distributed._shard.")
_NUMPY_DTYPE = re.compile(r"b1|[fiuc]\d{1,2}")


class Absent:
    """Stand-in for an object whose class is not loaded. `origin` is the class or function in the file."""

    origin: ClassVar[str] = "an object"

    def __init__(self, *_: object) -> None:
        """Ignore the arguments of the object."""

    def __setstate__(self, state: object) -> None:
        """Ignore the state of the object."""


class _Dtype(Absent):
    """Dtype of numpy. numpy's own class would let a file change a dtype of the whole process."""

    origin = "numpy.dtype"

    def __init__(self, text: str, *_: object) -> None:
        self.text, self.order = str(text), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def numpy(self) -> np.dtype[Any]:
        """Return the dtype; `ValueError` for other than numbers and booleans."""
        if not _NUMPY_DTYPE.fullmatch(self.text):
            raise ValueError(f"numpy's dtype {self.text!r:.40} is not a number")
        return np.dtype(self.order + self.text)


class Array(Absent):
    """Array of numpy, with its values."""

    origin = "numpy.ndarray"
    values: np.ndarray[Any, Any]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        flat = np.frombuffer(raw, dtype.numpy())
        self.values = flat.reshape(shape, order="F" if fortran else "C").astype(flat.dtype.newbyteorder("="))


def _scalar(dtype: _Dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype.numpy())[0].item()


def _empty_dict(*_: object) -> dict[Any, Any]:
    return {}


def _empty_list(*_: object) -> list[Any]:
    return []


def _empty_bytes(*_: object) -> bytes:
    return b""


# Constructors without effects outside their result, by their names in a file.
_HARMLESS: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": types.SimpleNamespace,
    "datetime.datetime": datetime.datetime,
    "datetime.date": datetime.date,
    "datetime.timedelta": datetime.timedelta,
    "datetime.timezone": datetime.timezone,
    "builtins.frozenset": frozenset,
    "builtins.bytes": _empty_bytes,  # pickle stores only empty bytes in this way
    "collections.defaultdict": _empty_dict,
    "collections.deque": _empty_list,
    "lightning.fabric.utilities.data.AttributeDict": dict,
    "lightning_fabric.utilities.data.AttributeDict": dict,
    "pytorch_lightning.utilities.parsing.AttributeDict": dict,
    "numpy.dtype": _Dtype,
    **{f"pathlib{local}.{name}": Path for local in ("", "._local") for name in ("Path", "PosixPath")},
    **{f"pathlib{local}.Pure{name}": pathlib.PurePath for local in ("", "._local") for name in ("Path", "PosixPath")},
    **{f"pathlib{local}.{name}": pathlib.PureWindowsPath
       for local in ("", "._local") for name in ("WindowsPath", "PureWindowsPath")},
    **{f"numpy.{core}.multiarray.{name}": made
       for core in ("core", "_core") for name, made in (("scalar", _scalar), ("_reconstruct", Array))},
}  # fmt: skip


def read_checkpoint(path: Path) -> Any:
    """Return the content of a file. Weights are memory-mapped; no code of the file runs.

    torch's restricted unpickler creates tensors, containers and the values of `_HARMLESS`. Every other class or
    function of the file becomes a subclass of `Absent`.

    Args:
        path: A file of `torch.save` or safetensors, or the index of several such files.

    Raises:
        TrainedModelRefused: A shard is missing, or tensors are spread over processes.
        Exception: The file is broken, or its pickle needs more than the restricted unpickler.
    """
    if is_index(path):
        return _read_shards(path)
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    names = _globals(path)
    if parts := sorted(name for name in names if name.startswith(_DISTRIBUTED)):
        raise TrainedModelRefused(
            f"The file of weights {path.name}",
            f"has parts of tensors ({', '.join(parts[:3])}) instead of whole ones",
            "Save the full state dict: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)).",
            code="sharded_weights",
        )
    made = {name: _HARMLESS.get(name) or _absent(name) for name in names}
    known = torch.serialization.get_safe_globals()
    while True:
        try:
            with torch.serialization.safe_globals([*known, *((stand_in, name) for name, stand_in in made.items())]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            # The unpickler fills only torch's own containers, and its message has the class of another one.
            container = OrderedDict if "SETITEM" in str(error) else list
            name = next((name for name, stand_in in made.items() if repr(stand_in) in str(error)), None)
            if name is None or container is made[name]:
                raise
            made[name] = container


def _absent(origin: str) -> type[Absent]:
    return type("Absent", (Absent,), {"origin": origin, "__qualname__": origin})


def is_index(path: Path) -> bool:
    """Return True for the index of weights in several files."""
    return path.name.lower().endswith(INDEX_SUFFIXES)


def shards_of(index: Path) -> dict[str, Path]:
    """Return the file of each weight.

    Raises:
        TrainedModelRefused: The index is malformed, names a path outside its folder, or a file is missing.
    """
    subject = f"The index of weights {index.name}"
    try:
        names = {str(name): str(file) for name, file in json.loads(index.read_text())["weight_map"].items()}
    except Exception as error:  # JSON of any form
        raise_machine_failure(error)
        raise TrainedModelRefused(
            subject, f"cannot be read: {shorten(error)}", "Log the weights again.", code="damaged_checkpoint"
        ) from error
    files = sorted(set(names.values()))
    # The index is data from elsewhere, and a link may point anywhere.
    if outside := [file for file in files if Path(file).name != file or (index.parent / file).is_symlink()]:
        problem = f"names the path {outside[0]!r:.200} outside its folder"
        raise TrainedModelRefused(
            subject, problem, "Log the index and its files into one folder.", code="path_outside_folder"
        )
    missing = [
        file for file in files if not file.lower().endswith(MODEL_SUFFIXES) or not (index.parent / file).is_file()
    ]
    if missing or not files:
        raise TrainedModelRefused(
            subject,
            f"names {len(files)} files, and {len(missing)} are missing: {', '.join(missing[:8])}",
            "Log every file that the index names into the folder of the index, and release the folder.",
            code="missing_shards",
        )
    return {name: index.parent / file for name, file in names.items()}


def is_pickle(path: Path) -> bool:
    """Return True for a file that begins with a complete pickle, in an archive or alone. It is not loaded."""
    try:
        _globals(path)
    except Exception as error:  # noqa: BLE001 - any bytes
        raise_machine_failure(error)
        return False
    return True


def foreign_globals(path: Path) -> list[str]:
    """Return the classes and functions in a file that make it a pickle, those outside torch first; [] if unreadable."""
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - _HARMLESS.keys()
    except Exception:  # noqa: BLE001 - a broken file, or one of torch 1.5, raises anything
        return []
    return sorted(names, key=lambda name: (name.startswith("torch."), name))


def origin_of(value: object) -> str | None:
    """Return the class or function of a stand-in, or None for a loaded value."""
    if isinstance(value, Absent) and not isinstance(value, Array):
        return value.origin
    return value.origin if isinstance(value, type) and issubclass(value, Absent) else None


def absent_in(value: Any, depth: int = 0) -> str | None:
    """Return the class or function of the first stand-in in nested containers, or None if all values are loaded."""
    if origin := origin_of(value):
        return origin
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((found for item in items if depth < 6 and (found := absent_in(item, depth + 1))), None)


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(str(path))
    with safe_open(str(path), framework="pt") as file:
        # `save_model` stores shared tensors once, and the other names in the metadata.
        for name, kept in (file.metadata() or {}).items():
            if kept in tensors:
                tensors.setdefault(name, tensors[kept])
    return tensors


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    files = shards_of(index)
    contents = {file: read_checkpoint(file) for file in sorted(set(files.values()))}
    lacking = [name for name, file in files.items() if not isinstance(contents[file], Mapping)]
    lacking += [name for name, file in files.items() if name not in lacking and name not in contents[file]]
    if lacking:
        raise ValueError(f"{files[lacking[0]].name} lacks {lacking[0]!r:.120}, which the index names")
    return {name: contents[file][name] for name, file in files.items()}


def _globals(path: Path) -> set[str]:
    """Return the names of the classes and functions in a file of `torch.save`."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            record = next(name for name in archive.namelist() if name.partition("/")[2] == "data.pkl")
            return set(_named(io.BytesIO(archive.read(record)), 1))
    with path.open("rb") as file:
        return set(_named(file, _PICKLES_OF_A_LEGACY_FILE))


def _named(stream: Any, pickles: int) -> Iterator[str]:
    for number in range(pickles):
        # A file of the module pickle has one pickle.
        if number and not stream.peek(1):
            return
        for operation, argument, _ in pickletools.genops(stream):
            if operation.name == "GLOBAL" and isinstance(argument, str):
                module, _, name = argument.partition(" ")
                # torch translates the names of Python 2, which pickle's protocol 2 uses.
                module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
                yield f"{module}.{name}"


def plain(value: Any) -> Any:
    """Return a value with numpy's arrays instead of their stand-ins, and dicts instead of namespaces."""
    if isinstance(value, Array):
        return value.values
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        return plain(vars(value))
    if type(value) in (dict, OrderedDict):
        return {key: plain(item) for key, item in value.items()}
    return type(value)(map(plain, value)) if type(value) in (list, tuple) else value
