"""Kind of a training run's model, found by the names of its files without a download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from airflow_onnx.hooks.mlflow_rest import MlflowRest, TrainingRun
from airflow_onnx.tracking import weight_files
from airflow_onnx.tracking.model_name import FILE_NAME
from onnx_release.errors import Refused

ModelKind = Literal["pt2", "pickle", "weights", "gone", "none"]
"""``pt2``: an exported program. ``pickle``: a pickle, or TorchScript, which has the same file name. ``weights``: a file
of weights. ``gone``: a logged model without its files. ``none``: no PyTorch model."""

# The file names of MLflow's PyTorch flavor, in every version.
_KINDS_BY_FILE: tuple[tuple[str, ModelKind], ...] = (("model.pt2", "pt2"), ("model.pth", "pickle"))
# MLflow 2 lists its logged models in this tag. A run with the tag and without model files lost them.
_LOGGED_BY_MLFLOW_2 = "mlflow.log-model.history"


@dataclass(frozen=True, slots=True)
class FoundModel:
    """The PyTorch model of a run.

    :param model_id: the logged model of MLflow 3.
    :param name: the folder of a model of MLflow 2, or the name that stands for every file of weights.
    """

    kind: ModelKind
    model_id: str | None = None
    name: str = ""

    def logged_name(self, rest: MlflowRest) -> str:
        """Return the name under which the training script logged the model; empty without a model."""
        return rest.model_name(self.model_id) if self.model_id else self.name


def find_model(rest: MlflowRest, run: TrainingRun) -> FoundModel:
    """Return the run's PyTorch model. Logged models of MLflow 3 are preferred to those of MLflow 2.

    :raises TrackingRefused: if several files of weights match equally well.
    """
    if run.model_ids:
        found = [FoundModel(_kind_of_logged_model(rest, model_id), model_id) for model_id in run.model_ids]
    else:
        found = _models_among_artifacts(rest, run)
    for model in found:
        if model.kind in ("pt2", "pickle"):
            return model

    def listing(folder: str) -> list[tuple[str, bool]]:
        return [(entry["path"], bool(entry.get("is_dir"))) for entry in rest.run_files(run.run_id, folder)]

    if files := sorted(weight_files.model_files(listing)):
        is_program = weight_files.choose(files, run.run_id).endswith(".pt2")
        return FoundModel("pt2" if is_program else "weights", name=FILE_NAME)
    return FoundModel("gone" if any(model.kind == "gone" for model in found) else "none")


def _kind_of_logged_model(rest: MlflowRest, model_id: str) -> ModelKind:
    try:
        if not rest.model_files(model_id):
            return "gone"
    except Refused:
        return "gone"  # The logged model was deleted.
    return _kind_of_files(rest.model_files(model_id, "data"))


def _models_among_artifacts(rest: MlflowRest, run: TrainingRun) -> list[FoundModel]:
    folders = [entry["path"] for entry in rest.run_files(run.run_id) if entry.get("is_dir")]
    models = [folder for folder in folders if "MLmodel" in _names(rest.run_files(run.run_id, folder))]
    if not models and _LOGGED_BY_MLFLOW_2 in run.tags:
        return [FoundModel("gone")]
    return [FoundModel(_kind_of_files(rest.run_files(run.run_id, f"{folder}/data")), name=folder) for folder in models]


def _kind_of_files(files: list[dict[str, Any]]) -> ModelKind:
    names = _names(files)
    return next((kind for name, kind in _KINDS_BY_FILE if name in names), "none")


def _names(files: list[dict[str, Any]]) -> set[str]:
    return {entry["path"].rpartition("/")[2] for entry in files}
