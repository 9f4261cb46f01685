"""Release of mapped pages after their use, except modified ones."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from onnx_release import limits
from onnx_release.trained.mapped_weights import MappedPages, dropping_pages, pages_dropped_after, pages_of

ROWS = 1024


def resident(tensor: torch.Tensor) -> int:
    """Count the pages of the tensor's values in memory, from /proc."""
    at, count = tensor.data_ptr() // mmap.PAGESIZE, tensor.nbytes // mmap.PAGESIZE
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(at * 8)
        entries = file.read(count * 8)
    return sum(entries[place + 7] >> 7 for place in range(0, len(entries), 8))


@pytest.fixture(params=["pt", "safetensors"])
def weights(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    made = {f"{i}.weight": torch.randn(ROWS, ROWS) for i in range(3)}
    path = tmp_path / f"weights.{request.param}"
    if request.param == "safetensors":
        save_file(made, path)
        return load_file(path)
    torch.save(made, path)
    loaded: dict[str, torch.Tensor] = torch.load(path, weights_only=True, mmap=True)
    return loaded


def model_of(weights: dict[str, torch.Tensor]) -> nn.Sequential:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(ROWS, ROWS, bias=False) for _ in range(3)))
    model.load_state_dict(weights, assign=True)
    return model.eval()


def test_dropped_pages_are_read_again(weights: dict[str, torch.Tensor]) -> None:
    model = model_of(weights)
    expected = [parameter.sum().item() for parameter in model.parameters()]
    parameters = list(model.parameters())
    assert sum(map(resident, parameters)) > 2 * ROWS
    pages_of(model).drop()
    assert sum(map(resident, parameters)) < ROWS
    assert [parameter.sum().item() for parameter in parameters] == expected


def test_a_modified_page_is_kept(weights: dict[str, torch.Tensor]) -> None:
    model = model_of(weights)
    with torch.no_grad():
        model[0].weight[0, 0] = 42.0
    pages_of(model).drop()
    assert model[0].weight[0, 0].item() == 42.0


def test_weights_in_memory_have_no_mapping() -> None:
    model = nn.Linear(ROWS, ROWS)
    before = model.weight.clone()
    pages = pages_of(model)
    assert pages.ranges == ()
    pages.drop()
    assert torch.equal(model.weight, before)


def test_a_forward_call_keeps_few_pages(weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_release.trained.mapped_weights.MAPPED_PAGES_KEPT_BYTES", ROWS * ROWS)
    model, x = model_of(weights), torch.randn(2, ROWS)
    peak, expected = 0, model(x)
    pages_of(model).drop()

    def record_peak(*_: object) -> None:
        nonlocal peak
        peak = max(peak, sum(map(resident, model.parameters())))

    model[2].register_forward_pre_hook(record_peak)
    with dropping_pages(model), torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    assert peak < ROWS * ROWS * 4 / mmap.PAGESIZE
    assert sum(map(resident, model.parameters())) < ROWS * ROWS * 4 / mmap.PAGESIZE
    assert not any(module._forward_hooks for module in model)


def test_pages_stay_until_the_end_of_repeated_calls(weights: dict[str, torch.Tensor]) -> None:
    model, x = model_of(weights), torch.randn(2, ROWS)
    whole = ROWS * ROWS * 4 // mmap.PAGESIZE
    with pages_dropped_after(model), torch.no_grad():
        expected = model(x)
        assert sum(map(resident, model.parameters())) > 2 * whole
    assert sum(map(resident, model.parameters())) < whole
    torch.testing.assert_close(model(x), expected)


def test_pages_are_dropped_above_the_limit(weights: dict[str, torch.Tensor]) -> None:
    tensor = weights["0.weight"]
    pages = MappedPages.behind([tensor])
    tensor.sum()
    pages.read(limits.MAPPED_PAGES_KEPT_BYTES)
    assert resident(tensor) > ROWS // 2
    pages.read(1)
    assert resident(tensor) == 0


def test_without_pagemap_nothing_is_dropped(weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    pages = MappedPages.behind(weights.values())
    assert pages.ranges
    monkeypatch.setattr("onnx_release.trained.mapped_weights._modified", lambda *_: True)
    weights["0.weight"].sum()
    pages.drop()
    assert resident(weights["0.weight"]) > 0
