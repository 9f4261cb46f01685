"""The export step: names, a varying batch, reproducible bytes, and refused models."""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from onnx_release.artifact.digests import describe_folder, folder_sha256
from onnx_release.export import graph_cleanup
from onnx_release.export.contract import ModelContract
from onnx_release.export.export_model import ExportStepOptions, export_trained
from onnx_release.export.fallback import ExportOptions, export_onnx
from onnx_release.export.strategies import retrace
from onnx_release.limits import EXTERNAL_DATA_FILE, MODEL_FILE, OPSET_MAX, OPSET_MIN
from onnx_release.records import OnnxArtifact, TensorSpec
from tests.core.conftest import Exported
from tests.core.models import (
    AlwaysDrops,
    DecidesByValue,
    Doubles,
    FreezesBatch,
    OneOutput,
    ReturnsDict,
    Sum,
    TwoHeads,
    image,
    save,
    signature,
)
from tests.refusals import refused

Exporter = Callable[..., Exported]
ROOT = Path(__file__).parents[3]


def _run(folder: Path, **inputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("trained", ["trained_pt2", "trained_pickle"])
def test_pt2_and_pickled_models_compute_the_outputs_of_eval_mode_at_any_batch_size(
    trained: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    options = ExportStepOptions(device="cpu", allow_pickle=trained == "trained_pickle")
    artifact = export_trained(request.getfixturevalue(trained), tmp_path / "out", options)
    for batch in (1, 2, 5):
        expected = TwoHeads().eval()(torch.from_numpy(image(batch)))
        got = _run(tmp_path / "out", image=image(batch))
        assert list(got) == ["positions", "uncertainties"]
        for candidate, reference in zip(got.values(), expected, strict=True):
            np.testing.assert_allclose(candidate, reference.detach().numpy(), atol=1e-6)
    assert artifact.inputs == (TensorSpec(name="image", dtype="float32", shape=("batch", 3, 8, 8)),)
    assert [spec.shape for spec in artifact.outputs] == [("batch", 2)] * 2
    assert artifact.trained_format == trained.removeprefix("trained_")


def test_the_record_describes_the_written_files(released: Exported) -> None:
    artifact = released.artifact
    model = onnx.load(released.folder / MODEL_FILE, load_external_data=False)
    assert (artifact.opset, artifact.ir_version) == (model.opset_import[0].version, model.ir_version)
    assert artifact.files == describe_folder(released.folder)
    assert artifact.sha256 == folder_sha256(artifact.files)
    assert artifact.size_bytes == sum(path.stat().st_size for path in released.folder.iterdir())
    assert (artifact.staging_uri, artifact.device, artifact.strategy) == (None, "cpu", "dynamo")
    assert {"torch", "onnx", "onnxscript", "onnx_ir", "mlflow"} <= set(artifact.tool_versions)
    assert OnnxArtifact.from_dict(artifact.to_dict()) == artifact
    # A pt2 model was traced when it was logged, with its input example of 4 rows.
    assert artifact.export_batch_size == 4


def test_the_onnx_file_of_a_small_model_is_the_whole_model(released: Exported, tmp_path: Path) -> None:
    assert [file.path for file in released.artifact.files if file.path.startswith(MODEL_FILE)] == [MODEL_FILE]
    shutil.copyfile(released.folder / MODEL_FILE, tmp_path / MODEL_FILE)
    assert _run(tmp_path, image=image(3)).keys() == {"positions", "uncertainties"}


def test_larger_weights_are_external_data_in_a_file_with_a_fixed_name(trained_pt2: Path, tmp_path: Path) -> None:
    export_trained(trained_pt2, tmp_path / "out", ExportStepOptions(device="cpu", single_file_max_bytes=0))
    model = onnx.load(tmp_path / "out" / MODEL_FILE, load_external_data=False)
    outside = [tensor for tensor in model.graph.initializer if tensor.external_data]
    assert {entry.value for t in outside for entry in t.external_data if entry.key == "location"} == {
        EXTERNAL_DATA_FILE
    }
    assert max(onnx.numpy_helper.to_array(t).nbytes for t in model.graph.initializer if not t.external_data) <= 256


@pytest.mark.parametrize("trained", ["trained_pt2", "trained_pickle"])
def test_no_source_path_is_in_the_file(trained: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    options = ExportStepOptions(device="cpu", allow_pickle=True)
    export_trained(request.getfixturevalue(trained), tmp_path / "out", options)
    content = (tmp_path / "out" / MODEL_FILE).read_bytes()
    for text in (str(ROOT), "site-packages", "models.py", "stack_trace", "TwoHeads"):
        assert text.encode() not in content


def test_two_processes_in_two_folders_write_the_same_bytes(
    trained_pickle: Path, released: Exported, trained_pt2: Path, tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from onnx_release.export.export_model import ExportStepOptions, export_trained\n"
        "options = ExportStepOptions(device='cpu', allow_pickle=True)\n"
        "for name, trained in zip(('pt2', 'pickle'), sys.argv[2:]):\n"
        "    print(export_trained(Path(trained), Path(sys.argv[1], name), options).sha256)\n"
    )
    here = export_trained(trained_pickle, tmp_path / "here", ExportStepOptions(device="cpu", allow_pickle=True))
    folder = tmp_path / "another" / "deeper"
    folder.mkdir(parents=True)
    command = [sys.executable, "-c", script, str(folder), str(trained_pt2), str(trained_pickle)]
    environment = {"PYTHONPATH": f"{ROOT / 'include'}:{ROOT}", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [released.artifact.sha256, here.sha256]


def test_other_weights_give_other_bytes(log_and_export: Exporter, released: Exported) -> None:
    model = TwoHeads()
    with torch.no_grad():
        model.linear.bias[0] += 1e-3
    artifact = log_and_export(model, serialization_format="pickle").artifact
    assert artifact.sha256 != released.artifact.sha256


@pytest.mark.parametrize("opset", [OPSET_MIN, OPSET_MAX])
def test_every_opset_of_the_limits_is_written_and_runs(trained_pt2: Path, tmp_path: Path, opset: int) -> None:
    artifact = export_trained(trained_pt2, tmp_path / "out", ExportStepOptions(opset=opset, device="cpu"))
    assert artifact.opset == opset
    assert _run(tmp_path / "out", image=image(3))["positions"].shape == (3, 2)


@pytest.mark.parametrize("opset", [OPSET_MIN - 1, OPSET_MAX + 1, 0, -1])
def test_an_opset_outside_the_range_is_refused_without_files(trained_pt2: Path, tmp_path: Path, opset: int) -> None:
    with refused("unsupported_opset", f"Opset {opset}", f"{OPSET_MIN} to {OPSET_MAX}"):
        export_trained(trained_pt2, tmp_path / "out", ExportStepOptions(opset=opset, device="cpu"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["tpu", "", "cuda:99"])
def test_an_unavailable_device_is_refused(trained_pt2: Path, tmp_path: Path, device: str) -> None:
    with refused("no_device", repr(device)):
        export_trained(trained_pt2, tmp_path / "out", ExportStepOptions(device=device))


@pytest.mark.parametrize("serialization", ["pt2", "pickle"])
def test_outputs_of_a_dict_keep_their_names(log_and_export: Exporter, serialization: str) -> None:
    exported = log_and_export(ReturnsDict().eval(), serialization_format=serialization)
    got = _run(exported.folder, image=image(3))
    expected = ReturnsDict().eval()(torch.from_numpy(image(3)))
    assert list(got) == ["positions", "uncertainties"] == [spec.name for spec in exported.artifact.outputs]
    for name, array in got.items():
        np.testing.assert_allclose(array, expected[name].detach().numpy(), atol=1e-6)


def test_inputs_have_the_order_and_the_names_of_the_signature(log_and_export: Exporter) -> None:
    arrays = {name: np.ones((4, 2), np.float32) for name in ("left", "right")}
    spec = signature(inputs=dict.fromkeys(arrays, (-1, 2)), outputs={"sum": (-1, 2)})
    exported = log_and_export(Sum(), signature=spec, input_example=arrays)
    got = _run(exported.folder, left=np.full((3, 2), 1, np.float32), right=np.full((3, 2), 10, np.float32))
    np.testing.assert_array_equal(got["sum"], np.full((3, 2), 21, np.float32))


def test_a_model_without_an_example_is_traced_with_a_seeded_sample(log_and_export: Exporter) -> None:
    exported = log_and_export(TwoHeads(), input_example=None)
    assert _run(exported.folder, image=image(3))["positions"].shape == (3, 2)
    assert exported.artifact.export_batch_size == 2


def test_a_pickled_model_with_an_example_of_one_row_has_a_varying_batch(log_and_export: Exporter) -> None:
    exported = log_and_export(TwoHeads(), input_example=image(1))
    assert _run(exported.folder, image=image(7))["positions"].shape == (7, 2)


def test_a_pt2_model_with_a_frozen_batch_is_refused(log_and_export: Exporter) -> None:
    with refused("frozen_batch", "'image'", "frozen at 1", "at least 2 samples", "-1"):
        log_and_export(TwoHeads().eval(), serialization_format="pt2", input_example=image(1))


def test_a_signature_with_a_fixed_batch_is_refused(log_and_export: Exporter) -> None:
    fixed = signature(inputs={"image": (4, 3, 8, 8)}, outputs={"positions": (4, 2), "uncertainties": (4, 2)})
    with refused("no_batch_dimension"):
        log_and_export(TwoHeads(), signature=fixed)


def test_a_model_that_freezes_its_own_batch_is_refused(log_and_export: Exporter) -> None:
    with refused("model_failed", "image float32 [3, 3, 8, 8]"):
        log_and_export(FreezesBatch())


def test_a_pt2_model_in_training_mode_is_refused_with_its_operators(log_and_export: Exporter) -> None:
    with refused("train_mode", "batch_norm", "dropout", "model.eval()"):
        log_and_export(TwoHeads().train(), serialization_format="pt2")


@pytest.mark.parametrize("serialization", ["pt2", "pickle"])
def test_a_dropout_that_ignores_eval_is_refused(log_and_export: Exporter, serialization: str) -> None:
    with refused("train_mode", "dropout"):
        log_and_export(AlwaysDrops().eval(), serialization_format=serialization)


def test_training_mode_inside_an_inner_graph_is_refused(tmp_path: Path) -> None:
    class Frozen(TwoHeads):
        def forward(self, image: torch.Tensor) -> Any:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = torch.nn.functional.dropout(self.conv(image))
            return out.float().mean(dim=(2, 3))

    batch = torch.export.Dim("batch")
    program = torch.export.export(Frozen().eval(), (torch.from_numpy(image(2)),), dynamic_shapes=({0: batch},))
    assert not any("aten.dropout" in str(node.target) for node in program.graph.nodes), "dropout is in an inner graph"
    contract = ModelContract(
        inputs=(TensorSpec(name="image", dtype="float32", shape=("batch", 3, 8, 8)),),
        outputs=(TensorSpec(name="out", dtype="float32", shape=("batch", 8)),),
        example={"image": image(2)},
    )
    with refused("train_mode", "dropout"):
        export_onnx(program, tmp_path, contract, ExportOptions(device="cpu"))


def test_a_branch_on_values_is_refused_with_the_exporters_reason(log_and_export: Exporter) -> None:
    with refused("data_dependent", "data-dependent", "torch.cond"):
        log_and_export(DecidesByValue())


def test_an_output_of_another_dtype_is_refused(log_and_export: Exporter) -> None:
    with refused("contract_mismatch", "output 'positions'", "float64 instead of float32"):
        log_and_export(Doubles())


def test_a_missing_output_is_refused(log_and_export: Exporter) -> None:
    with refused("outputs_differ", "positions, uncertainties"):
        log_and_export(OneOutput())


def test_an_output_that_is_not_in_the_signature_is_refused(log_and_export: Exporter) -> None:
    with refused("outputs_differ", "positions"):
        log_and_export(TwoHeads(), signature=signature(outputs={"positions": (-1, 2)}))


def test_an_output_of_another_shape_is_refused(log_and_export: Exporter) -> None:
    other = signature(outputs={"positions": (-1, 3), "uncertainties": (-1, 2)})
    with refused("contract_mismatch", "output 'positions' with size 2 instead of 3 in dimension 1"):
        log_and_export(TwoHeads(), signature=other)


def test_weights_with_nan_are_refused_and_leave_no_files(tmp_path: Path) -> None:
    model = TwoHeads().eval()
    with torch.no_grad():
        model.linear.weight[1, 1] = torch.nan
    trained = save(model, tmp_path / "trained")
    with refused("nan_weights", "linear.weight", "1 of 32"):
        export_trained(trained, tmp_path / "out", ExportStepOptions(device="cpu"))
    assert not (tmp_path / "out").exists()


def test_a_second_export_replaces_the_first(exported: Exported, trained_pt2: Path) -> None:
    (exported.folder / "left_over").write_text("")
    again = export_trained(trained_pt2, exported.folder, ExportStepOptions(device="cpu"))
    assert again.files == exported.artifact.files == describe_folder(exported.folder)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_restored(enabled: bool, frozen: bool) -> None:
    batch = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
    contract = ModelContract(inputs=(batch,), outputs=(), example={"x": np.ones((2, 4), np.float32)})
    (gc.enable if enabled else gc.disable)()
    if frozen:
        gc.freeze()
    before = gc.get_freeze_count()
    try:
        for module in (torch.nn.Linear(4, 2), DecidesByValue()):
            with contextlib.suppress(Exception):
                retrace(module.eval(), contract, "dynamo")
            assert gc.isenabled() is enabled
            assert bool(gc.get_freeze_count()) is bool(before) is frozen
    finally:
        gc.unfreeze()
        gc.enable()


def test_the_export_prints_and_logs_nothing(trained_pt2: Path, tmp_path: Path, capfd: Any, caplog: Any) -> None:
    with warnings.catch_warnings(record=True) as seen, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        export_trained(trained_pt2, tmp_path / "out", ExportStepOptions(device="cpu"))
    assert [str(warning.message) for warning in seen] == []
    assert [record.getMessage() for record in caplog.records] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint8", "int64", "bool"])
@pytest.mark.parametrize("shape", [(5, 7), (700, 3001), (1, 9), (9, 1), (4, 6, 5)])
def test_strided_weights_are_written_in_row_major_order(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    stored = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    for view in (stored.T, stored.T[::2], stored.swapaxes(0, -1)):
        with (tmp_path / "data").open("wb") as file:
            graph_cleanup._StridedTensor(view).tofile(file)
        assert (tmp_path / "data").read_bytes() == view.tobytes()
