"""The example model, its data, its training and its command line."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from torch import nn

from examples.fit import FitOptions, fit, predict, validation_set
from examples.localization import (
    INPUT_SHAPE,
    UNCERTAINTY_MAX,
    UNCERTAINTY_MIN,
    BackboneSize,
    LocalizationNet,
    StochasticDepth,
)
from examples.spectrograms import SCALE_DB, Floats, make_spectrograms
from examples.train import TrainConfig, main, train

INCLUDE = Path(__file__).parents[2] / "include"
SMALLEST = BackboneSize(depths=(1, 1, 1, 1), widths=(4, 8, 8, 8), stochastic_depth=0.5)


@pytest.fixture
def tracking_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty SQLite store, whose artifacts MLflow writes to the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    yield f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.set_tracking_uri(None)


# The published counts without the 1000-class classifier, which the two heads (0.2 to 0.4 M) replace.
@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 28.0), ("small", 49.7), ("base", 87.9), ("large", 197.0), ("huge", 658.0)]
)
def test_each_size_has_the_published_number_of_parameters(size: str, millions: float) -> None:
    with torch.device("meta"):
        model = LocalizationNet(size)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{size}: {count} parameters")
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


def test_an_unknown_size_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'giant' is unknown: use one of nano, tiny, small, base, large, huge"):
        LocalizationNet("giant")


def last_layer(head: nn.Sequential) -> nn.Linear:
    layer = list(head)[-1]
    assert isinstance(layer, nn.Linear)
    return layer


@pytest.mark.parametrize("size", ["nano", SMALLEST])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_outputs_have_their_shapes_and_bounds(size: str | BackboneSize, batch_size: int) -> None:
    model = LocalizationNet(size).eval()
    with torch.no_grad():
        last_layer(model.position_head).bias.copy_(torch.tensor([-50.0, 50.0]))
        last_layer(model.uncertainty_head).bias.copy_(torch.tensor([-50.0, 50.0]))
        positions, uncertainties = model(torch.randn(batch_size, *INPUT_SHAPE))
    assert positions.shape == uncertainties.shape == (batch_size, 2)
    assert positions.dtype == uncertainties.dtype == torch.float32
    assert positions[:, 0].max() < -40.0
    assert positions[:, 1].min() > 40.0
    torch.testing.assert_close(uncertainties, torch.tensor([[UNCERTAINTY_MIN, UNCERTAINTY_MAX]]).expand(batch_size, 2))


def test_evaluation_is_deterministic_and_training_is_not() -> None:
    model = LocalizationNet(SMALLEST)
    inputs = torch.randn(4, *INPUT_SHAPE)
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(inputs)[0], model(inputs)[0])
        model.train()
        assert not torch.equal(model(inputs)[0], model(inputs)[0])


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = StochasticDepth(0.25).train()
    kept = layer(torch.ones(4000, 2, 1, 1)).flatten(1)
    assert torch.equal(kept[:, 0], kept[:, 1])
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.75]))
    assert kept.mean().item() == pytest.approx(1.0, abs=0.05)


def test_spectrograms_are_reproducible_normalised_and_within_the_square() -> None:
    inputs, positions = make_spectrograms(64, seed=3)
    again = make_spectrograms(64, seed=3)
    other, _ = make_spectrograms(64, seed=4)
    assert inputs.shape == (64, *INPUT_SHAPE)
    assert positions.shape == (64, 2)
    assert inputs.dtype == positions.dtype == np.float32
    np.testing.assert_array_equal(inputs, again[0])
    np.testing.assert_array_equal(positions, again[1])
    assert not np.array_equal(inputs, other)
    assert abs(inputs.mean()) < 0.3
    assert 0.7 < inputs.std() < 1.5
    assert np.abs(positions).max() <= 1.0


def levels(inputs: Floats) -> Floats:
    return np.asarray(inputs.mean(axis=(2, 3)), dtype=np.float32)


def delays(inputs: Floats) -> Floats:
    """Return the time of the highest power at each receiver, relative to the mean; independent of loudness."""
    power = (10 ** (SCALE_DB / 10.0 * inputs)).sum(axis=2)
    centres = (power * np.arange(power.shape[-1])).sum(-1) / power.sum(-1)
    return np.asarray(centres - centres.mean(axis=1, keepdims=True), dtype=np.float32)


@pytest.mark.parametrize("features", [levels, delays])
def test_a_linear_fit_of_levels_or_delays_predicts_the_position(features: Callable[[Floats], Floats]) -> None:
    train_inputs, train_positions = make_spectrograms(400, seed=1)
    test_inputs, test_positions = make_spectrograms(200, seed=2)
    weights, *_ = np.linalg.lstsq(np.c_[features(train_inputs), np.ones(400)], train_positions, rcond=None)
    error = np.abs(np.c_[features(test_inputs), np.ones(200)] @ weights - test_positions).mean()
    baseline = np.abs(train_positions.mean(axis=0) - test_positions).mean()
    print(f"{features.__name__}: {error:.3f}, guessing the mean: {baseline:.3f}")
    assert error < 0.6 * baseline


def test_a_fixed_number_of_epochs_gives_the_same_training_twice() -> None:
    options = FitOptions(seconds=0.0, epochs_min=2, samples_per_epoch=64, validation_samples=32)

    def trained() -> tuple[list[dict[str, float]], torch.Tensor]:
        torch.manual_seed(options.seed)
        model = LocalizationNet(SMALLEST)
        epochs = [epoch.metrics for epoch in fit(model, options)]
        return epochs, predict(model, validation_set(options)[0], 8)[0]

    first, second = trained(), trained()
    assert len(first[0]) == 2
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])


def test_a_diverging_training_stops() -> None:
    model = LocalizationNet(SMALLEST)
    nn.init.constant_(last_layer(model.position_head).bias, float("nan"))
    with pytest.raises(FloatingPointError, match="the loss is nan in epoch 1"):
        next(fit(model, FitOptions(seconds=0.0, samples_per_epoch=32, validation_samples=32)))


def test_training_learns_and_logs_a_model_with_a_dynamic_batch(tracking_uri: str) -> None:
    config = TrainConfig(tracking_uri=tracking_uri, experiment="tests", size="nano", seconds=0.0, epochs_min=2)
    client = MlflowClient(tracking_uri)
    run = client.get_run(train(config))
    assert run.info.status == "FINISHED"
    assert run.data.params["size"] == "nano"
    metrics = run.data.metrics
    assert set(metrics) >= {"train_nll", "val_nll", "val_mae", "val_mae_baseline"}
    assert metrics["val_mae"] < 0.8 * metrics["val_mae_baseline"]
    history = client.get_metric_history(run.info.run_id, "val_mae")
    assert [metric.step for metric in history] == [1, 2]

    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{run.outputs.model_outputs[0].model_id}"))
    info = mlflow.models.get_model_info(str(folder))
    assert info.signature is not None
    assert [(s.name, s.shape) for s in info.signature.inputs] == [("mel_spectrogram", (-1, *INPUT_SHAPE))]
    assert [(s.name, s.shape) for s in info.signature.outputs] == [("positions", (-1, 2)), ("uncertainties", (-1, 2))]
    example = mlflow.models.Model.load(str(folder)).load_input_example(str(folder))
    # MLflow stores a bare array and returns a dict with the names of the signature.
    assert list(example) == ["mel_spectrogram"]
    example = example["mel_spectrogram"]
    np.testing.assert_allclose(example, validation_set(config.fit_options())[0][: len(example)], rtol=1e-6)
    assert len(example) >= 2

    program = torch.export.load(folder / "data" / "model.pt2")
    eager = LocalizationNet("nano").eval()
    eager.load_state_dict(program.state_dict)
    unseen = torch.from_numpy(make_spectrograms(5, seed=99)[0])
    with torch.no_grad():
        for exported, expected in zip(program.module()(unseen), eager(unseen), strict=True):
            assert exported.shape == (5, 2)
            torch.testing.assert_close(exported, expected, rtol=1e-5, atol=1e-5)


def test_a_failed_training_leaves_a_failed_run(tracking_uri: str) -> None:
    config = TrainConfig(tracking_uri=tracking_uri, experiment="tests", size="nano", seconds=0.0)
    # MLflow refuses this value after the last epoch, when the run is almost finished.
    config = dataclasses.replace(config, serialization="zip")  # type: ignore[arg-type]
    with pytest.raises(MlflowException, match="must be one of 'pickle' or 'pt2'"):
        train(config)
    client = MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"


def test_the_command_line_prints_the_run_id_of_a_pickled_model_last(tracking_uri: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.train", "--tracking-uri", tracking_uri, "--experiment", "tests"]
    command += ["--size", "nano", "--seconds", "0", "--serialization", "pickle", "--run-name", "manual"]
    environment = os.environ | {"PYTHONPATH": str(INCLUDE)}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    *epochs, last = done.stdout.splitlines()
    assert len(epochs) == 1
    assert epochs[0].startswith("epoch   1")
    name, run_id = last.split("=")
    run = MlflowClient(tracking_uri).get_run(run_id)
    assert name == "run_id"
    assert (run.info.status, run.info.run_name) == ("FINISHED", "manual")
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{run.outputs.model_outputs[0].model_id}"))
    assert (folder / "code" / "examples" / "localization.py").is_file()
    model = torch.load(folder / "data" / "model.pth", weights_only=False)
    assert isinstance(model, LocalizationNet)
    assert not model.training


def test_the_command_line_explains_a_missing_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--tracking-uri", "nonsense://store", "--size", "nano", "--seconds", "0"]) == 1
    assert "training failed: " in capsys.readouterr().err
