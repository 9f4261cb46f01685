"""What a training run left, told from the names of its files: nothing is downloaded."""

from __future__ import annotations

from typing import Literal

from airflow_onnx.hooks.mlflow_rest import MlflowRest, TrainingRun
from airflow_onnx.tracking import weight_files
from onnx_release.errors import Refused

Kind = Literal["pt2", "pickle", "weights", "gone", "none"]
"""An exported program, a pickle (or TorchScript, which has the same name), a file of weights, a model that was logged
but whose files are gone, or no PyTorch model at all."""

# How MLflow's PyTorch flavor names what it stores, in every version.
_FILES: tuple[tuple[str, Kind], ...] = (("model.pt2", "pt2"), ("model.pth", "pickle"))
# MLflow 2 noted each logged model here; a run with this tag and without files has lost them.
_LOGGED_BY_MLFLOW_2 = "mlflow.log-model.history"


def kind_of_model(rest: MlflowRest, run: TrainingRun) -> Kind:
    """Return the kind of the run's PyTorch model, looked for where MLflow 3 and then where MLflow 2 keeps it."""
    found = [_kind_of_logged_model(rest, model_id) for model_id in run.model_ids]
    if not run.model_ids:
        found = _kinds_among_artifacts(rest, run)
    usable: list[Kind] = [kind for kind in found if kind in ("pt2", "pickle")]
    if usable:
        return usable[0]
    return _kind_of_files(rest, run.run_id) or ("gone" if "gone" in found else "none")


def _kind_of_files(rest: MlflowRest, run_id: str) -> Kind | None:
    """Return the kind of the file that the release would take; raises `Refused` when several are as good."""

    def listing(folder: str) -> list[tuple[str, bool]]:
        return [(entry["path"], bool(entry.get("is_dir"))) for entry in rest.run_files(run_id, folder)]

    files = sorted(weight_files.model_files(listing))
    if not files:
        return None
    return "pt2" if weight_files.choose(files, run_id).endswith(".pt2") else "weights"


def _kind_of_logged_model(rest: MlflowRest, model_id: str) -> Kind:
    try:
        files = rest.model_files(model_id)
    except Refused:
        return "gone"  # the logged model was deleted
    if not files:
        return "gone"
    return _kind(_names(rest.model_files(model_id, "data")))


def _kinds_among_artifacts(rest: MlflowRest, run: TrainingRun) -> list[Kind]:
    files = rest.run_files(run.run_id)
    folders = [entry["path"] for entry in files if entry.get("is_dir")]
    models = [folder for folder in folders if "MLmodel" in _names(rest.run_files(run.run_id, folder))]
    if not models and _LOGGED_BY_MLFLOW_2 in run.tags:
        return ["gone"]
    return [_kind(_names(rest.run_files(run.run_id, f"{folder}/data"))) for folder in models]


def _names(files: list[dict[str, str]]) -> set[str]:
    return {entry["path"].rpartition("/")[2] for entry in files}


def _kind(names: set[str]) -> Kind:
    return next((kind for name, kind in _FILES if name in names), "none")
