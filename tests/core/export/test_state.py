"""Models whose `forward` writes attributes: released if that changes no output, else refused with their names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnx_release.benchmark.benchmark_model import compare_artifact
from onnx_release.benchmark.setup import BenchmarkOptions
from onnx_release.trained.module_state import ModuleState
from tests.core.judging import Judged, judge, log_model

ROWS = [("x", "float32", (-1, 8))], [("y", "float32", (-1, 8))]
SEQUENCES = [("x", "float32", (-1, -1, 8))], [("y", "float32", (-1, -1, 8))]


def _values(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


class Written(nn.Module):
    """A linear layer, and attributes that `forward` writes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 8)
        self.register_buffer("state", torch.zeros(8))
        self.kept: Any = None
        self.longest = 0
        self.calls = [0]


class Table(Written):
    """Angles of positions, computed for the longest input so far."""

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if length > self.longest:
            self.kept, self.longest = torch.outer(torch.arange(length).float(), torch.arange(8) / 8.0).cos(), length
        result: Tensor = self.linear(x) * self.kept[:length]
        return result


class MaskPerLength(Written):
    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if self.kept is None or self.kept.shape[0] != length:
            self.kept = torch.full((length, length), -torch.inf).triu(1)
        result: Tensor = self.linear((x @ x.transpose(1, 2) + self.kept).softmax(-1) @ x)
        return result


class Counts(Written):
    """A buffer, an object and a list that no output depends on."""

    def forward(self, x: Tensor) -> Tensor:
        self.state += 1
        self.calls[0] += 1
        self.kept = self.linear(x)
        result: Tensor = self.kept.relu()
        return result


class RunningMean(Written):
    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.state, Tensor)
        self.state.mul_(0.9).add_(x.mean(0), alpha=0.1)
        result: Tensor = self.linear(x - self.state)
        return result


class ReplacedMean(Written):
    def forward(self, x: Tensor) -> Tensor:
        self.state = 0.9 * self.state + 0.1 * x.mean(0)
        result: Tensor = self.linear(x - self.state)
        return result


class Cache(Written):
    """Keys of earlier calls, as a decoder keeps them."""

    def forward(self, x: Tensor) -> Tensor:
        keys = self.linear(x)
        if self.kept is not None and self.kept.shape[0] == keys.shape[0]:
            keys = torch.cat([self.kept, keys], 1)
        self.kept = keys
        return (x @ keys.transpose(1, 2)).softmax(-1) @ keys


class MaskOfFirstCall(Written):
    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = (torch.rand(8) > 0.5).float()
        result: Tensor = self.linear(x) * self.kept
        return result


def _judged(model: nn.Module, folder: Path, form: str = "pickle") -> Judged:
    inputs, outputs = SEQUENCES if isinstance(model, Table | MaskPerLength | Cache) else ROWS
    example = _values(3, 6, 8) if inputs is SEQUENCES[0] else _values(3, 8)
    return judge(log_model(model, folder / "trained", inputs, outputs, example, form=form), folder / "onnx")


def _finding(judged: Judged, code: str) -> str:
    assert judged.artifact is not None
    return next(finding.message for finding in judged.artifact.findings if finding.code == code)


@pytest.mark.parametrize("kind", [Table, MaskPerLength])
def test_a_table_that_grows_with_the_input_is_right_at_every_length(
    kind: Callable[[], Written], tmp_path: Path
) -> None:
    judged = _judged(kind(), tmp_path)
    for length in (4, 6, 13, 30):
        x = _values(2, length, 8)
        expected = kind().eval()(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_allclose(judged.run(x=x)["y"], expected, atol=1e-5)
    assert "kept" in _finding(judged, "forward_writes")


def test_a_table_that_was_grown_in_training_is_refused_with_its_names(tmp_path: Path) -> None:
    model = Table()
    # Longer than every length that a release compares.
    model(torch.ones(1, 50, 8))
    judged = _judged(model, tmp_path)
    assert judged.code == "size_limit", judged.text
    assert all(part in judged.text for part in ("kept, longest", "51, 8]", "__init__")), judged.text


def test_a_pt2_program_with_a_table_names_its_limit(tmp_path: Path) -> None:
    model = Table()
    model(torch.ones(1, 50, 8))
    judged = _judged(model, tmp_path, "pt2")
    x = _values(2, 50, 8)
    np.testing.assert_allclose(judged.run(x=x)["y"], model(torch.from_numpy(x)).detach().numpy(), atol=1e-5)
    assert "at most 50" in _finding(judged, "size_limit")


def test_a_branch_on_a_size_is_refused(tmp_path: Path) -> None:
    class Chunked(Table):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.shape[1] > 40 else x - 1

    judged = _judged(Chunked(), tmp_path)
    assert judged.code == "size_limit", judged.text
    assert "x_dim1 41" in judged.text


@pytest.mark.parametrize("form", ["pickle", "pt2"])
def test_attributes_that_no_output_depends_on_do_not_matter(form: str, tmp_path: Path) -> None:
    judged = _judged(Counts(), tmp_path, form)
    x = _values(4, 8)
    expected = Counts().eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(judged.run(x=x)["y"], expected, atol=1e-6)
    assert "state" in _finding(judged, "forward_writes")


@pytest.mark.parametrize(
    ("kind", "form", "name"),
    [
        (RunningMean, "pickle", "state"),
        (RunningMean, "pt2", "state"),
        (ReplacedMean, "pickle", "state"),
        (Cache, "pickle", "kept"),
    ],
)
def test_outputs_that_depend_on_earlier_calls_are_refused_with_the_attribute(
    kind: Callable[[], Written], form: str, name: str, tmp_path: Path
) -> None:
    judged = _judged(kind(), tmp_path, form)
    assert judged.code == "stateful_model", judged.text
    assert f"writes {name}" in judged.text


def test_a_comparison_repeats_its_first_sample(tmp_path: Path) -> None:
    judged = _judged(Counts(), tmp_path)
    assert judged.artifact is not None
    other = log_model(RunningMean(), tmp_path / "other", *ROWS, _values(3, 8))
    options = BenchmarkOptions(batch_sizes=(1,), allow_pickle=True)
    failures = compare_artifact(other, judged.folder, judged.artifact, options).failures
    assert any("after the other samples" in failure for failure in failures), failures


def test_a_random_mask_of_the_first_call_is_random(tmp_path: Path) -> None:
    assert _judged(MaskOfFirstCall(), tmp_path).code == "random_outputs"


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.total += x.sum(0)
        return x * self.calls + self.total


@pytest.mark.parametrize("kind", [Table, Counts, RunningMean, ReplacedMean, Scripted])
def test_the_state_of_a_model_is_restored(kind: Callable[[], nn.Module]) -> None:
    model: Any = torch.jit.script(kind().eval()) if kind is Scripted else kind().eval()
    state, x = ModuleState(model), torch.ones(2, 8) if kind is not Table else torch.ones(2, 5, 8)
    outputs = []
    for _ in range(2):
        with torch.inference_mode(), state.restored():
            outputs.append(model(x))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)
    assert state.written
    assert not any(tensor.abs().sum() for name, tensor in model.named_buffers() if name in ("state", "total"))
