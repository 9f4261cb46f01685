"""Runners of PyTorch and of ONNX Runtime, in this process and in a separate one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import psutil
import pytest
import torch
from onnx import TensorProto, helper, save

from onnx_release.errors import Transient
from onnx_release.runners.child_process import clean_environment
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.runners.onnxruntime_process import OnnxRuntimeProcess
from onnx_release.runners.pytorch import PyTorchOptions, PyTorchRunner
from onnx_release.trained.output_names import name_outputs
from tests.refusals import refused

ONE = PyTorchOptions(input_names=("x",), output_names=("y",))


class Halves(torch.nn.Module):
    """Takes two inputs whose order matters, and returns them in the chosen form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> object:
        difference, total = self.dropout(a - b), a + b
        forms: dict[str, object] = {
            "tuple": (difference, total),
            "dict": {"total": total, "difference": difference},
            "foreign dict": {"z": difference, "a": total},
            "nested": [(difference,), None, {"t": total}],
            "three": (difference, total, total),
            "text": (difference, "total"),
            "bfloat16": (difference, total.bfloat16()),
        }
        return forms[self.form]


@pytest.fixture
def square(tmp_path: Path) -> Path:
    """A graph of y = x * x, n = 2 * x."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2]) for name in ("x", "y", "n")]
    nodes = [helper.make_node("Mul", ["x", "x"], ["y"]), helper.make_node("Add", ["x", "x"], ["n"])]
    model = helper.make_model(
        helper.make_graph(nodes, "square", value[:1], value[1:]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    path = tmp_path / "model.onnx"
    save(model, path)
    return path


@pytest.mark.parametrize("form", ["tuple", "dict", "foreign dict", "nested"])
def test_pytorch_outputs_are_named_and_dropout_is_off(form: str) -> None:
    options = PyTorchOptions(input_names=("a", "b"), output_names=("difference", "total"))
    inputs = {"b": np.full((2, 3), 2.0, np.float32), "a": np.full((2, 3), 5.0, np.float32)}
    with PyTorchRunner(Halves(form).train(), options) as runner:
        outputs = runner.run(inputs)
    assert list(outputs) == ["difference", "total"]
    np.testing.assert_array_equal(outputs["difference"], np.full((2, 3), 3.0, np.float32))
    np.testing.assert_array_equal(outputs["total"], np.full((2, 3), 7.0, np.float32))


@pytest.mark.parametrize(("form", "part"), [("three", "3 values"), ("text", "str 'total'"), ("bfloat16", "bfloat16")])
def test_pytorch_outputs_that_differ_from_the_signature_are_refused(form: str, part: str) -> None:
    options = PyTorchOptions(input_names=("a", "b"), output_names=("difference", "total"))
    inputs = {name: np.ones((1, 1), np.float32) for name in ("a", "b")}
    with PyTorchRunner(Halves(form), options) as runner, refused("outputs_differ", part):
        runner.run(inputs)


def test_an_exported_program_runs_at_other_batch_sizes() -> None:
    model = torch.nn.Linear(3, 2).eval()
    program = torch.export.export(model, (torch.ones(2, 3),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    with PyTorchRunner(program, ONE) as runner:
        y = runner.run({"x": x})["y"]
    np.testing.assert_allclose(y, model(torch.from_numpy(x)).detach().numpy(), atol=1e-6)


def test_a_model_that_fails_on_a_shape_is_refused_with_its_message() -> None:
    with (
        PyTorchRunner(torch.nn.Linear(3, 2), ONE) as runner,
        refused("model_failed", "x float32 [2, 4]", "mat1 and mat2"),
    ):
        runner.run({"x": np.ones((2, 4), np.float32)})


def test_a_runner_that_is_never_entered_changes_no_process_wide_setting() -> None:
    threads, fastpath = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    options = PyTorchOptions(input_names=("x",), output_names=("y",), threads=threads + 1, mha_fastpath=not fastpath)
    runner = PyTorchRunner(torch.nn.Linear(3, 2), options)
    assert torch.get_num_threads() == threads
    assert torch.backends.mha.get_fastpath_enabled() is fastpath
    with pytest.raises(RuntimeError, match="not open"):
        runner.run({"x": np.ones((1, 3), np.float32)})


def test_process_wide_settings_are_restored_when_the_runner_closes() -> None:
    threads, fastpath = torch.get_num_threads(), torch.backends.mha.get_fastpath_enabled()
    options = PyTorchOptions(input_names=("x",), output_names=("y",), threads=threads + 1, mha_fastpath=not fastpath)
    with PyTorchRunner(torch.nn.Linear(3, 2), options) as runner:
        assert torch.get_num_threads() == threads + 1
        assert torch.backends.mha.get_fastpath_enabled() is not fastpath
    assert torch.get_num_threads() == threads
    assert torch.backends.mha.get_fastpath_enabled() is fastpath
    with pytest.raises(RuntimeError, match="not open"):
        runner.run({"x": np.ones((1, 3), np.float32)})


def test_a_single_tensor_and_a_dict_of_other_names_are_bound_in_order() -> None:
    one = torch.ones(1)
    assert list(name_outputs(one, ("y",))) == ["y"]
    assert list(name_outputs({"logits": one}, ("y",))) == ["y"]


def test_onnx_outputs_are_named_and_the_thread_count_is_set(square: Path) -> None:
    with OnnxRuntimeRunner(square, OnnxRuntimeOptions(threads=1)) as runner:
        outputs = runner.run({"x": np.array([[2.0, 3.0]], np.float32)})
        assert runner.providers_requested == runner.providers_active == ("CPUExecutionProvider",)
        options = runner._session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    np.testing.assert_array_equal(outputs["y"], [[4.0, 9.0]])
    np.testing.assert_array_equal(outputs["n"], [[4.0, 6.0]])
    with pytest.raises(RuntimeError, match="closed"):
        runner.run({})


def test_onnx_inputs_that_do_not_fit_are_refused(square: Path) -> None:
    with OnnxRuntimeRunner(square, OnnxRuntimeOptions()) as runner:
        with refused("onnxruntime_failed", "x float32 [1, 3]", "Got: 3 Expected: 2"):
            runner.run({"x": np.ones((1, 3), np.float32)})
        with refused("onnxruntime_failed", "z float32"):
            runner.run({"z": np.ones((1, 2), np.float32)})


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with refused("onnxruntime_rejected", "model.onnx"):
        OnnxRuntimeRunner(path, OnnxRuntimeOptions())


def test_a_missing_provider_is_refused_and_not_replaced(square: Path) -> None:
    absent = "CoreMLExecutionProvider"
    assert absent not in onnxruntime.get_available_providers()
    with refused("provider_missing", absent):
        OnnxRuntimeRunner(square, OnnxRuntimeOptions(providers=(absent, "CPUExecutionProvider")))


def process_of(process: OnnxRuntimeProcess) -> psutil.Process:
    """Return the process that waits. The services of other tests are children too."""
    assert process._waiting is not None
    return psutil.Process(process._waiting.pid)


def test_a_separate_process_waits_for_its_model_and_runs_it(square: Path) -> None:
    x = np.array([[1.0, 2.0]], np.float32)
    with OnnxRuntimeProcess() as process:
        waiting = process_of(process)
        (outputs,) = process.run(square, [{"x": x}])
        assert not waiting.is_running()
        # A second strategy of the export runs in a new process.
        (again,) = process.run(square, [{"x": x}])
    np.testing.assert_array_equal(outputs["y"], x * x)
    np.testing.assert_array_equal(again["n"], 2 * x)
    assert process._waiting is None


def test_an_unused_process_ends_and_its_files_are_removed() -> None:
    with OnnxRuntimeProcess() as process:
        waiting = process_of(process)
        home = process._scratch
        assert home.is_dir()
    assert not waiting.is_running()
    assert not home.exists()


def test_a_refusal_in_the_separate_process_keeps_its_code(square: Path) -> None:
    square.write_bytes(b"no model")
    with OnnxRuntimeProcess() as process, refused("onnxruntime_rejected", "model.onnx"):
        process.run(square, [])


def test_a_crash_of_the_separate_process_has_its_own_code(square: Path) -> None:
    with OnnxRuntimeProcess() as process:
        waiting = process_of(process)
        waiting.send_signal(signal.SIGABRT)
        with refused("onnxruntime_crashed", "SIGABRT"):
            process.run(square, [])


def test_a_separate_process_that_is_killed_is_transient(square: Path) -> None:
    with OnnxRuntimeProcess() as process:
        waiting = process_of(process)
        waiting.kill()
        with pytest.raises(Transient, match="SIGKILL"):
            process.run(square, [])


def test_an_interrupt_of_the_callers_work_ends_a_process_that_hangs(square: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with OnnxRuntimeProcess() as process:
        waiting = process_of(process)
        waiting.suspend()
        with pytest.raises(KeyboardInterrupt):
            process.run(square, [], interrupted)
        assert not waiting.is_running()


def test_a_session_leaves_no_usage_data_in_the_home_folder(square: Path, tmp_path: Path) -> None:
    code = (
        "import sys, numpy\n"
        "from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner\n"
        "with OnnxRuntimeRunner(sys.argv[1], OnnxRuntimeOptions()) as runner:\n"
        "    print(runner.run({'x': numpy.ones((1, 2), numpy.float32)})['n'])\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    usual = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    environment = usual | {"HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", code, str(square)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[[2. 2.]]", done.stderr
    assert list(home.rglob("*.db")) == []
    assert clean_environment(str(home))["ORT_DISABLE_TELEMETRY"] == "1"
