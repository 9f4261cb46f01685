"""Static checks: a well-formed artifact passes, and every fault is found, also several at the same time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_release import limits
from onnx_release.artifact import onnx_file
from onnx_release.artifact.digests import describe_folder, folder_sha256
from onnx_release.check.static_checks import CheckOptions, check_artifact
from onnx_release.limits import EXTERNAL_DATA_FILE, MODEL_FILE
from onnx_release.records import CheckReport, OnnxArtifact, TensorSpec
from tests.core.conftest import Exported
from tests.core.models import Masked


def _check(exported: Exported, **options: Any) -> CheckReport:
    return check_artifact(exported.folder, exported.artifact, CheckOptions(**options))


def _errors(report: CheckReport, code: str) -> list[str]:
    assert not report.passed
    return [finding.message for finding in report.findings if (finding.severity, finding.code) == ("error", code)]


def _warnings(report: CheckReport, code: str) -> list[str]:
    return [finding.message for finding in report.findings if (finding.severity, finding.code) == ("warning", code)]


def _recorded(exported: Exported, **changes: Any) -> Exported:
    """Record the current bytes of a changed folder."""
    files = describe_folder(exported.folder)
    fields = {"files": files, "sha256": folder_sha256(files), "size_bytes": sum(f.size_bytes for f in files)}
    return Exported(exported.folder, exported.artifact.replace(**fields | changes))


def _edited(exported: Exported, edit: Callable[[onnx.ModelProto], None]) -> Exported:
    path = exported.folder / MODEL_FILE
    model = onnx.load(path, load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString())
    return _recorded(exported)


def test_a_well_formed_artifact_passes_and_is_described(released: Exported) -> None:
    report = _check(released)
    assert report.passed
    assert {finding.severity for finding in report.findings} == {"info"}
    assert (report.sha256, report.opset) == (released.artifact.sha256, released.artifact.opset)
    assert report.inputs == released.artifact.inputs
    assert report.outputs == released.artifact.outputs
    assert report.domains == ("",)
    assert report.node_count
    assert report.size_bytes == released.artifact.size_bytes


def test_an_attention_mask_is_a_warning(log_and_export: Callable[..., Exported]) -> None:
    def masked(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.float32([0, -np.inf]), "mask"))

    report = _check(_edited(log_and_export(Masked()), masked))
    assert report.passed
    assert [f.message for f in report.findings if f.severity == "warning"] == [
        "tensor 'mask' has 1 values of -inf of 2"
    ]


@pytest.fixture
def external(exported: Exported) -> Exported:
    """The artifact with its weights in external data."""
    onnx_file.save(ir.load(exported.folder / MODEL_FILE), exported.folder, 0)
    return _recorded(exported)


def test_a_changed_byte_of_the_weights_is_found(external: Exported) -> None:
    data = external.folder / EXTERNAL_DATA_FILE
    data.write_bytes(b"\1" + data.read_bytes()[1:])
    assert f"{EXTERNAL_DATA_FILE} changed" in _errors(_check(external), "bytes")[0]


def test_a_record_whose_digest_differs_from_its_files_is_found(exported: Exported) -> None:
    other = Exported(exported.folder, exported.artifact.replace(sha256="0" * 64))
    assert "0" * 64 in _errors(_check(other), "bytes")[0]


@pytest.mark.parametrize("content", [b"", b"no protocol buffer", None])
def test_a_damaged_model_file_is_found(exported: Exported, content: bytes | None) -> None:
    path = exported.folder / MODEL_FILE
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    report = _check(_recorded(exported))
    assert not report.passed
    assert any(finding.severity == "error" for finding in report.findings)


def test_a_missing_folder_is_a_finding(exported: Exported) -> None:
    shutil.rmtree(exported.folder)
    report = _check(exported)
    assert _errors(report, "bytes")
    assert _errors(report, "unreadable")


def test_a_graph_that_the_checker_rejects_is_found(exported: Exported) -> None:
    def break_(model: onnx.ModelProto) -> None:
        model.graph.node[0].input[0] = "nobody_makes_this"

    assert "onnx.checker" in _errors(_check(_edited(exported, break_)), "checker")[0]


def test_an_operator_that_does_not_exist_is_found(exported: Exported) -> None:
    def break_(model: onnx.ModelProto) -> None:
        model.graph.node[-1].op_type = "Softminus"

    assert "Softminus" in _errors(_check(_edited(exported, break_)), "checker")[0]


def test_shapes_that_contradict_each_other_are_found(exported: Exported) -> None:
    def break_(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7

    report = _check(_edited(exported, break_))
    assert _errors(report, "shape_inference")
    assert _errors(report, "interface") == ["output 'positions' has shape ['batch', 7], not ['batch', 2]"]


def _location(path: str) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = path

    return edit


@pytest.mark.parametrize("location", ["/etc/passwd", "../outside.data", "sub/../../outside.data", "..\\outside.data"])
def test_external_data_outside_the_folder_is_found(external: Exported, location: str) -> None:
    (external.folder.parent / "outside.data").write_bytes((external.folder / EXTERNAL_DATA_FILE).read_bytes())
    assert "outside the artifact" in _errors(_check(_edited(external, _location(location))), "external_data")[0]


def test_missing_external_data_is_found(external: Exported) -> None:
    assert "missing" in _errors(_check(_edited(external, _location("other.data"))), "external_data")[0]


def test_external_data_of_a_tensor_in_an_inner_graph_is_found(exported: Exported) -> None:
    def edit(model: onnx.ModelProto) -> None:
        tensor = TensorProto(name="inner", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="/etc/passwd")
        made = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [1])
        branch = helper.make_graph([], "branch", [], [made], initializer=[tensor])
        model.graph.node.append(helper.make_node("If", ["yes"], ["never"], then_branch=branch, else_branch=branch))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))

    assert "/etc/passwd" in _errors(_check(_edited(exported, edit)), "external_data")[0]


def test_a_link_in_place_of_the_data_is_found(external: Exported) -> None:
    data = external.folder / EXTERNAL_DATA_FILE
    data.rename(external.folder.parent / "elsewhere")
    data.symlink_to(external.folder.parent / "elsewhere")
    report = _check(external)
    assert "symbolic link" in _errors(report, "bytes")[0]
    assert _errors(report, "external_data")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_in_the_data_file_are_found_and_counted(external: Exported, value: float) -> None:
    data = external.folder / EXTERNAL_DATA_FILE
    data.write_bytes(np.full(3, value, np.float32).tobytes() + data.read_bytes()[12:])
    assert "has 3 NaN or infinite" in _warnings(_check(_recorded(external)), "weights")[0]


def test_nan_in_a_constant_node_is_found(exported: Exported) -> None:
    def edit(model: onnx.ModelProto) -> None:
        value = numpy_helper.from_array(np.float32([np.nan]), "poison")
        model.graph.node.insert(0, helper.make_node("Constant", [], ["poison"], value=value))

    assert "'poison' has 1 NaN" in _warnings(_check(_edited(exported, edit)), "weights")[0]


def test_a_custom_domain_is_found_unless_it_is_allowed(exported: Exported) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.opset_import.append(helper.make_opsetid("com.example", 1))
        first = model.graph.node[0]
        first.op_type, first.domain = "FancyConv", "com.example"

    changed = _edited(exported, edit)
    assert _errors(_check(changed), "domains") == [
        "operators FancyConv of domain 'com.example' are not allowed; add the domain to the parameter "
        "`allowed_domains` if the serving runtime supports it"
    ]
    allowed = _check(changed, allowed_domains=("com.example",))
    assert "domains" not in {finding.code for finding in allowed.findings}
    assert "com.example" in allowed.domains


@pytest.mark.parametrize("recorded", [{"opset": 19}, {"ir_version": 3}])
def test_another_version_than_recorded_is_found(exported: Exported, recorded: dict[str, int]) -> None:
    assert "the export recorded" in _errors(_check(_recorded(exported, **recorded)), "versions")[0]


def test_a_model_file_above_the_limit_of_its_format_is_found(
    released: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (released.folder / MODEL_FILE).stat().st_size
    monkeypatch.setattr(limits, "PROTO_MAX_BYTES", size)
    assert _check(released).passed
    monkeypatch.setattr(limits, "PROTO_MAX_BYTES", size - 1)
    assert _errors(_check(released), "size")


def _spec(artifact: OnnxArtifact, **changes: Any) -> dict[str, Any]:
    return {"outputs": (artifact.outputs[0].replace(**changes), *artifact.outputs[1:])}


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (
            lambda a: _spec(a, name="other"),
            {"output 'other' is missing", "output 'positions' is not in the record"},
        ),
        (lambda a: _spec(a, dtype="float64"), {"output 'positions' has dtype float32, not float64"}),
        (lambda a: _spec(a, shape=(4, 2)), {"output 'positions' has shape ['batch', 2], not [4, 2]"}),
        (lambda a: _spec(a, shape=("batch", "n")), {"output 'positions' has shape ['batch', 2], not ['batch', 'n']"}),
        (lambda a: _spec(a, shape=("batch",)), {"output 'positions' has shape ['batch', 2], not ['batch']"}),
        (lambda a: {"inputs": ()}, {"input 'image' is not in the record"}),
        (
            lambda a: {"inputs": (*a.inputs, TensorSpec(name="mask", dtype="bool", shape=("batch",)))},
            {"input 'mask' is missing"},
        ),
    ],
)
def test_an_interface_that_differs_from_the_record_is_found(
    exported: Exported, change: Callable[[OnnxArtifact], dict[str, Any]], messages: set[str]
) -> None:
    changed = Exported(exported.folder, exported.artifact.replace(**change(exported.artifact)))
    assert set(_errors(_check(changed), "interface")) == messages


def test_the_order_of_outputs_does_not_matter(exported: Exported) -> None:
    outputs = exported.artifact.outputs[::-1]
    assert _check(Exported(exported.folder, exported.artifact.replace(outputs=outputs))).passed


def test_an_input_that_lost_its_batch_is_found(exported: Exported) -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    assert "has shape [1, 3, 8, 8], not ['batch', 3, 8, 8]" in _errors(_check(_edited(exported, edit)), "interface")[0]


def test_operators_left_in_training_mode_are_found(exported: Exported) -> None:
    def edit(model: onnx.ModelProto) -> None:
        out = model.graph.output[0].name
        last = next(node for node in model.graph.node if out in node.output)
        last.output[list(last.output).index(out)] = "before"
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "ratio"))
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "on"))
        model.graph.node.append(helper.make_node("Dropout", ["before", "ratio", "on"], [out], name="drop"))

    assert _errors(_check(_edited(exported, edit)), "training") == ["node 'drop' (Dropout) is in training mode"]


def test_a_batch_norm_in_training_mode_is_found(exported: Exported) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for name in "smbv":
            model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), f"bn_{name}"))
        names = ["image", *(f"bn_{name}" for name in "sbmv")]
        model.graph.node.append(
            helper.make_node("BatchNormalization", names, ["n", "m", "v"], name="norm", training_mode=1)
        )

    assert _errors(_check(_edited(exported, edit)), "training") == [
        "node 'norm' (BatchNormalization) is in training mode"
    ]


def test_every_finding_is_listed(external: Exported) -> None:
    def edit(model: onnx.ModelProto) -> None:
        _location("../outside.data")(model)
        model.graph.node[0].domain = "com.example"
        model.ir_version = 9

    changed = _edited(external, edit)
    (changed.folder / "extra").write_text("")
    report = _check(changed)
    codes = {finding.code for finding in report.findings if finding.severity == "error"}
    assert codes >= {"bytes", "external_data", "checker", "domains", "versions", "weights"}


def test_nothing_is_written_into_the_folder(released: Exported, tmp_path: Path) -> None:
    before = describe_folder(released.folder)
    _check(released)
    assert describe_folder(released.folder) == before
