"""Cache of a worker: a second task, try or release on it fetches nothing again, and never other bytes."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path

import mlflow
import pytest
import torch

from airflow_onnx.deployment import settings
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.storage import worker_cache
from tests.edge.operators.test_refused import pickled_run
from tests.edge.releasing import (
    Release,
    TwoHeads,
    new_release,
)
from tests.edge.storage.workers import Transfers, Workers
from tests.refusals import refused


def test_a_damaged_cache_entry_is_fetched_again(
    staged_release: Release, workers: Workers, transfers: Transfers, caplog: pytest.LogCaptureFixture
) -> None:
    here = workers.go("one")
    staged_release.run("check")
    (model,) = (here / "cache" / "entries").glob("*/model.onnx")
    model.write_bytes(bytes(model.stat().st_size))
    transfers.clear()
    with caplog.at_level(logging.WARNING):
        assert staged_release.run("check")["passed"]
    assert "is damaged" in caplog.text
    assert transfers == {"fetch": staged_release.returned["export"]["size_bytes"]}


def test_a_cache_that_is_turned_off_leaves_nothing_on_the_worker(
    staged_release: Release, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__CACHE_MAX_BYTES", "0")
    here = workers.go("one")
    staged_release.run("check", "parity_latency", "upload", "register", "promote")
    # The lock of the latency measurement belongs to the host and stays.
    assert [str(path) for path in (here / "tmp").iterdir()] == [settings.measure_lock()]
    assert not (here / "cache").exists()


@pytest.mark.parametrize("text", ["-1", "10 GiB", "1.5"])
def test_a_cache_limit_that_is_not_a_number_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__CACHE_MAX_BYTES", text)
    with refused("wrong_option", "cache_max_bytes"):
        settings.cache_max_bytes()


def test_a_logged_model_is_cached_for_another_release(
    hook: MlflowHook, run_id: str, workers: Workers, transfers: Transfers
) -> None:
    workers.go("one")
    uri = new_release(run_id).to("wait")["model_uri"]
    with worker_cache.trained_model(hook, uri) as first:
        assert (first.path / "MLmodel").is_file()
    assert transfers.take()["download"] > 0
    with worker_cache.trained_model(hook, uri) as second:
        assert second == first
    assert transfers.take() == {}


def test_with_pickles_allowed_a_model_is_cached_by_digest_only(
    hook: MlflowHook, run_id: str, workers: Workers, transfers: Transfers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE", "True")
    workers.go("one")
    uri = new_release(run_id).to("wait")["model_uri"]
    for _ in range(2):
        with worker_cache.trained_model(hook, uri) as found:
            assert transfers.take()["download"] > 0
    with worker_cache.trained_model(hook, uri, found.sha256):
        assert transfers.take() == {}, "a digest from the release's own records is found"


def test_an_overwritten_file_of_a_run_is_fetched_again(hook: MlflowHook, workers: Workers, tmp_path: Path) -> None:
    workers.go("one")
    with mlflow.start_run() as run:
        log_weights(tmp_path, seed=1)
        uri = f"runs:/{run.info.run_id}/weights.pt"
        with worker_cache.trained_model(hook, uri) as before:
            content = before.path.read_bytes()
        log_weights(tmp_path, seed=2)
        with worker_cache.trained_model(hook, uri) as after:
            assert len(after.path.read_bytes()) == len(content), "the listing is the same"
            assert after.path.read_bytes() != content
        workers.go("two")
        with (
            refused("changed_content", before.sha256),
            worker_cache.trained_model(hook, uri, before.sha256),
        ):
            pytest.fail("the model was returned")


def log_weights(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    torch.save(TwoHeads().state_dict(), folder / "weights.pt")
    mlflow.log_artifact(str(folder / "weights.pt"))


def test_a_pickled_model_with_own_code_does_not_change_its_cached_copy(
    hook: MlflowHook, workers: Workers, transfers: Transfers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE", "True")
    code = tmp_path / "own_code" / "own_net.py"
    code.parent.mkdir()
    code.write_text("from tests.edge.releasing import TwoHeads\n\n\nclass OwnNet(TwoHeads):\n    pass\n")
    with monkeypatch.context() as training:
        training.syspath_prepend(str(code.parent))
        own_net = importlib.import_module("own_net")
        release = new_release(pickled_run(own_net.OwnNet(), code_paths=[str(code)]))
        monkeypatch.delitem(sys.modules, "own_net")
    workers.go("one")
    release.to("check")
    transfers.clear()
    release.run("parity_latency")
    assert transfers == {}, "Python wrote no bytecode beside the code"
