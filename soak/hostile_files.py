"""Hostile files of models, weights and inputs, each given to the code that reads it."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from onnx_release.samples.edge_cases import read_arrays
from onnx_release.trained.checkpoint_file import shards_of
from onnx_release.trained.load import load_unchecked
from onnx_release.trained.mlflow_model import TrainedPackage, read_trained
from onnx_release.trained.model_factory import FactoryOptions, make_model

MARKER = "code-has-run"
"""The name of a file or folder that the code of an input would make."""


class Payload:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        """Name the function that runs."""
        return os.mkdir, (str(self.folder / MARKER),)


def npy(shape: str, descr: str = "'<f4'", data: bytes = b"", version: int = 1) -> bytes:
    """Return an array in numpy's format with any texts in its header."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


def _nested() -> bytes:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("x.npy", npy("(1,)", data=b"0000"))
    return inner.getvalue()


ARRAYS: Mapping[str, bytes] = {
    "256 GiB": npy("(4096, 4096, 4096)"),
    "a shape of 2^124": npy(f"({2**62}, {2**62})"),
    "a negative size": npy("(-1, 5)"),
    "a text as size": npy("(0, 'x')"),
    "objects": npy("()", descr="'O'"),
    "fields with objects": npy("(1,)", descr="[('a', 'O')]"),
    "code as dtype": npy("()", descr=f"__import__('os').mkdir('{MARKER}')"),
    "a compressed header of 2 GiB": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 2**26,
    "a header of 40 kB": npy("(1,)" + " " * 40_000, version=2),
    "an archive": _nested(),
    "a pickle": pickle.dumps({"a": 1}),
}
"""Contents of an array in an ``.npz`` file."""


def _npz(content: bytes) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        path = folder / "inputs.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("x.npy", content)
        return read_arrays(path, "The file", "Save it.")

    return run


def _npz_payload(folder: Path) -> object:
    path = folder / "inputs.npz"
    np.savez(path, x=np.array([Payload(folder)], dtype=object), allow_pickle=True)
    return read_arrays(path, "The file", "Save it.")


def _load(path: Path, file_format: Literal["pt2", "pickle", "torchscript", "state_dict"]) -> object:
    package = TrainedPackage(
        format=file_format, data_path=path, inputs=(), outputs=(), example=None, pytorch_version="unknown"
    )
    return load_unchecked(package, allow_pickle=False)


def _pickle(name: str, file_format: Literal["pickle", "state_dict"], **settings: Any) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        torch.save({"state_dict": {"w": torch.ones(1)}, "more": Payload(folder)}, folder / name, **settings)
        return _load(folder / name, file_format)

    return run


def _bare_pickle(folder: Path) -> object:
    path = folder / "weights.pt"
    path.write_bytes(pickle.dumps(Payload(folder)))
    return _load(path, "state_dict")


def _pt2(record: str, content: Callable[[Path], bytes]) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        path = folder / "model.pt2"
        records = {"archive_format": b"pt2", "archive_version": b"0", "models/model.json": b"{}"}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (records | {record: content(folder)}).items():
                archive.writestr(f"model/{name}", data)
        return _load(path, "pt2")

    return run


def _graph(**fields: object) -> Callable[[Path], bytes]:
    return lambda _: json.dumps({"graph": fields}).encode()


def _torchscript(code: str) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        path = folder / "model.pth"
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in (("constants.pkl", ""), ("data.pkl", ""), ("code/net.py", code)):
                archive.writestr(f"model/{name}", text)
        return _load(path, "torchscript")

    return run


def _index(file: str, link: str = "") -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": {"w": file}}))
        if link:
            (folder / file).symlink_to(link)
        return shards_of(path)

    return run


def _mlmodel(text: str) -> Callable[[Path], object]:
    def run(folder: Path) -> object:
        (folder / "data").mkdir()
        (folder / "data" / "model.pt2").touch()
        (folder / "MLmodel").write_text(text.replace("FOLDER", str(folder)))
        return read_trained(folder)

    return run


def _signature(name: str) -> Callable[[Path], object]:
    spec = {"name": name, "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}}
    signature = json.dumps({"inputs": json.dumps([spec])})
    return _mlmodel(f"flavors: {{pytorch: {{model_data: data}}}}\nsignature: {signature}\n")


def _laughs() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    return "\n".join([*lines, "flavors: {pytorch: {model_data: *a11}}"])


def _factory(path: str) -> Callable[[Path], object]:
    return lambda _: make_model(FactoryOptions(path=path, allowed=("json", "collections")), {})


FILES: Mapping[str, Callable[[Path], object]] = {
    **{f".npz: {name}": _npz(content) for name, content in ARRAYS.items()},
    ".npz: an object with code": _npz_payload,
    "pickle: model.pth": _pickle("model.pth", "pickle"),
    "pickle: a checkpoint": _pickle("last.ckpt", "state_dict"),
    "pickle: of the old format": _pickle("last.ckpt", "state_dict", _use_new_zipfile_serialization=False),
    "pickle: named as safe weights": _pickle("model.safetensors", "state_dict"),
    "pickle: without an archive": _bare_pickle,
    "pt2: pickled inputs": _pt2("data/sample_inputs/model.pt", lambda folder: pickle.dumps(Payload(folder))),
    "pt2: a pickled constant": _pt2("data/constants/c.pt", lambda folder: pickle.dumps(Payload(folder))),
    "pt2: a library": _pt2("data/aotinductor/model/model.so", lambda _: b"\x7fELF\x00"),
    "pt2: code as a size": _pt2("models/model.json", _graph(expr_str=f"__import__('os').mkdir('{MARKER}')")),
    "pt2: code as a guard": _pt2("models/model.json", _graph(guards_code=["().__class__.__base__"])),
    "pt2: an operator that opens files": _pt2("models/model.json", _graph(target="torch.ops.aten.from_file.default")),
    "TorchScript: a foreign operator": _torchscript("def f(x):\n  return ops.evil.run(x)\n"),
    "TorchScript: torch.save": _torchscript("def f(x):\n  return torch.save(x, '/tmp/x')\n"),
    "TorchScript: unreadable code": _torchscript("def f(:\n"),
    "index of weights: above its folder": _index("../../etc/passwd"),
    "index of weights: an absolute path": _index("/etc/passwd"),
    "index of weights: a link": _index("w.safetensors", link="/etc/passwd"),
    "MLmodel: data above its folder": _mlmodel("flavors: {pytorch: {model_data: ../../..}}"),
    "MLmodel: data at an absolute path": _mlmodel("flavors: {pytorch: {model_data: /etc}}"),
    "MLmodel: code at an absolute path": _mlmodel(
        'flavors: {pytorch: {model_data: data, code: /etc}}\nsignature:\n  inputs: \'[{"name": "x", "type": '
        '"tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}}]\'\n'
    ),
    "MLmodel: an object of Python": _mlmodel(f"flavors: !!python/object/apply:os.mkdir ['FOLDER/{MARKER}']"),
    "MLmodel: 10^12 aliases": _mlmodel(_laughs()),
    "MLmodel: nested 100,000 times": _mlmodel("flavors: " + "[" * 100_000),
    "MLmodel: 10 MB": _mlmodel("flavors: {pytorch: {model_data: data}}\nx: " + "y" * 10_000_000),
    "signature: a name of 1 MB": _signature("n" * 1_000_000),
    "signature: a name with a line break": _signature("x\nERROR a forged line"),
    "factory: another package": _factory("os:system"),
    "factory: a function of an imported module": _factory("json:codecs.open"),
    "factory: a module of an imported module": _factory("json.decoder:re.sys.exit"),
    "factory: the globals of a function": _factory("json:dumps.__globals__.get"),
    "factory: the subclasses of object": _factory("json:JSONDecoder.__base__.__subclasses__"),
    "factory: the builtins": _factory("json:__builtins__.get"),
    "factory: no path": _factory("json:dumps; import os"),
    "factory: a prefix of an allowed package": _factory("json_evil:run"),
}
"""Readers of one hostile file by its name. Each gets an empty folder."""
