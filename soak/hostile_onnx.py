"""Hostile ONNX files: external data outside of the folder, foreign operators, absurd sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnx_release.artifact.digests import describe_folder, folder_sha256
from onnx_release.check.static_checks import CheckOptions, check_artifact
from onnx_release.errors import Refused
from onnx_release.limits import METADATA_MAX_BYTES, MODEL_FILE
from onnx_release.records import OnnxArtifact, TensorSpec

Edit = Callable[[onnx.ModelProto, Path], None]


def check(folder: Path, edit: Edit) -> None:
    """Write a sound file with one change, and check it.

    :raises Refused: with the code of the first error.
    """
    made = folder / "artifact"
    made.mkdir()
    model = _sound()
    edit(model, made)
    (made / MODEL_FILE).write_bytes(model.SerializeToString())
    report = check_artifact(made, _record(made), CheckOptions())
    errors = [finding for finding in report.findings if finding.severity == "error"]
    if sum(len(finding.message) for finding in report.findings) > _MESSAGES_MAX_CHARACTERS:
        return
    if errors:
        raise Refused("The file", errors[0].message, "Export it again.", code=errors[0].code)


_MESSAGES_MAX_CHARACTERS = 100_000


def _sound() -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in "xy")
    weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "weight")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"], name="product")], "net", [x], [y])
    graph.initializer.append(weight)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _record(folder: Path) -> OnnxArtifact:
    files = () if any(path.is_symlink() for path in folder.iterdir()) else describe_folder(folder)
    specs = {name: (TensorSpec(name=name, dtype="float32", shape=("batch", 2)),) for name in "xy"}
    return OnnxArtifact(
        sha256=folder_sha256(files), size_bytes=0, files=files, opset=20, ir_version=10, inputs=specs["x"],
        outputs=specs["y"], strategy="dynamo", trained_format="pt2", device="cpu", providers=(), export_batch_size=2,
        export_wall_s=0.0, tool_versions={},
    )  # fmt: skip


def _external(tensor: TensorProto, **entries: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)


def _located(location: str, **entries: str) -> Edit:
    def edit(model: onnx.ModelProto, folder: Path) -> None:
        (folder / "weights").write_bytes(bytes(16))
        _external(model.graph.initializer[0], location=location, **entries)

    return edit


def _link(model: onnx.ModelProto, folder: Path) -> None:
    (folder / "weights").symlink_to("/dev/zero")
    _external(model.graph.initializer[0], location="weights")


def _constant_outside(model: onnx.ModelProto, _: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "c")
    _external(tensor, location="/etc/passwd")
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def _sparse_outside(model: onnx.ModelProto, _: Path) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "s")
    _external(values, location="../secret")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2]))


def _function(domain: str, node: onnx.NodeProto) -> Edit:
    def edit(model: onnx.ModelProto, _: Path) -> None:
        opsets = [helper.make_opsetid("", 20), helper.make_opsetid("evil.ops", 1)]
        model.functions.append(helper.make_function(domain, "Hidden", ["a"], ["b"], [node], opsets))
        model.opset_import.append(helper.make_opsetid("evil.ops", 1))

    return edit


def _data_in_a_function(model: onnx.ModelProto, folder: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(2, np.float32), "c")
    _external(tensor, location="../secret")
    _function("", helper.make_node("Constant", [], ["b"], value=tensor))(model, folder)


def _domain(model: onnx.ModelProto, _: Path) -> None:
    model.graph.node[0].domain = "evil.ops"
    model.opset_import.append(helper.make_opsetid("evil.ops", 1))


def _many_domains(model: onnx.ModelProto, _: Path) -> None:
    for number in range(2000):
        name = f"{number}{'d' * 500}"
        model.graph.node.append(helper.make_node("Op", ["x"], [f"o{number}"], domain=name))
        model.opset_import.append(helper.make_opsetid(name, 1))


def _metadata(model: onnx.ModelProto, _: Path) -> None:
    model.metadata_props.add(key="k", value="x" * (METADATA_MAX_BYTES + 1))


def _doc(model: onnx.ModelProto, _: Path) -> None:
    model.graph.node[0].doc_string = "x" * (METADATA_MAX_BYTES + 1)


def _shape(model: onnx.ModelProto, _: Path) -> None:
    model.graph.initializer[0].dims[:] = [2**40, 2**40]


def _negative(model: onnx.ModelProto, _: Path) -> None:
    model.graph.initializer[0].dims[:] = [-2, -2]


def _tensor_name(model: onnx.ModelProto, _: Path) -> None:
    name = "n" * 10_000_000
    model.graph.initializer.append(numpy_helper.from_array(np.full(2, np.nan, np.float32), name))
    model.graph.node[0].domain = "evil.ops"


EDITS: dict[str, Edit] = {
    "data at an absolute path": _located("/etc/passwd"),
    "data above the folder": _located("../secret"),
    "data above the folder by a detour": _located("a/../../secret"),
    "data at a path of Windows": _located("..\\secret"),
    "data in a device by a link": _link,
    "data with a null byte in its name": _located("weights\0"),
    "data with a name of 10 MB": _located("w" * 10_000_000),
    "data beyond the end of its file": _located("weights", offset="8", length="1000000000000"),
    "data at a negative place": _located("weights", offset="-8", length="16"),
    "data at no number": _located("weights", offset="__import__('os')", length="16"),
    "data of a constant outside": _constant_outside,
    "data of a sparse tensor outside": _sparse_outside,
    "data of a function outside": _data_in_a_function,
    "operator of another domain": _domain,
    "operator of another domain in a function": _function("", helper.make_node("Run", ["a"], ["b"], domain="evil.ops")),
    "2000 domains with long names": _many_domains,
    "metadata": _metadata,
    "a comment of a node": _doc,
    "a shape of 2^80": _shape,
    "a negative shape": _negative,
    "a tensor name of 10 MB": _tensor_name,
}
"""Changes of a sound file by their name."""
