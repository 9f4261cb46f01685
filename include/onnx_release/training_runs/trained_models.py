"""Search for the trained model of a run in MLflow. The watch, the release and the command find the same one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from onnx_release.errors import Refused, TrainingRunRefused
from onnx_release.training_runs import logged_models, tags, weight_files
from onnx_release.training_runs.logged_models import Choice, LoggedModel, Unusable
from onnx_release.training_runs.records import TrainingRun
from onnx_release.training_runs.server import RunServer, models_of_run

Kind = Literal["pt2", "pickle", "file"]
"""Kind of a trained model: that of a logged model, or ``file`` for a file of weights or of a model."""

LOG_AGAIN = (
    "Log the model with mlflow.pytorch.log_model in the training run, or its weights as a file "
    "(.pt2, .safetensors, .ckpt, .pth, .pt, .pth.tar, .bin), or give the URI of another run's model."
)
# The file names of MLflow's PyTorch flavor, in every version.
_KINDS_BY_FILE: tuple[tuple[str, logged_models.Kind], ...] = (("model.pt2", "pt2"), ("model.pth", "pickle"))
# The other entries of the folder of a PyTorch model.
_DESCRIPTIONS = ("MLmodel", ".yaml", ".yml", ".txt", ".json", ".toml", "code", "metadata", "registered_model_meta")
# MLflow 2 lists the models of a run in this tag.
_LOGGED_BY_MLFLOW_2 = "mlflow.log-model.history"
# MLflow 2 puts a model's folder among the artifacts of a run, usually at the first level.
_NEAR = 1
# A model of another run is requested by its id.
_OF_OTHER_RUNS_MAX = 20
_LISTED_MAX = 5
# A search for fewer models costs more than it saves.
_SEARCHED_MIN = 2
_MODEL_ID = re.compile(r"m-[0-9a-f]{32}")
# MLflow's REST API has LOGGED_MODEL_READY and LOGGED_MODEL_UPLOAD_FAILED, its client READY and FAILED.
_STATUS = re.compile("^LOGGED_MODEL_(UPLOAD_)?")

Check = Callable[[str], str | None]
"""Function that returns a predicate, the reason why the model of a URI cannot be released, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """The model of a training run to release.

    :param name: its name in the training run, empty for a file.
    :param chosen: the reason for this model.
    :param skipped: the logged models that come before it, each with the reason.
    """

    uri: str
    name: str = ""
    kind: Kind
    chosen: str
    skipped: tuple[str, ...] = ()


def single_models(rest: RunServer, runs: Sequence[TrainingRun]) -> dict[str, dict[str, Any]]:
    """Return the info of the logged models by id, for the runs that logged one model, with one request for all of them.

    The runs with several models are left out: their models may be thousands.
    """
    single = [run for run in runs if len(run.model_steps) == 1]
    ids = [one for run in single for one in run.model_steps if _MODEL_ID.fullmatch(one)]
    if len(ids) < _SEARCHED_MIN:
        return {}
    experiments = sorted({run.experiment_id for run in single})
    try:
        rows = rest.logged_models(experiments, f"model_id IN ({', '.join(map(repr, ids))})")
    except Refused:
        # A server may refuse the condition. Then each model is read by itself.
        return {}
    return {row["model_id"]: row for row in rows}


def find(
    rest: RunServer,
    run: TrainingRun,
    name: str | None = None,
    check: Check | None = None,
    known: Mapping[str, dict[str, Any]] = MappingProxyType({}),
) -> FoundModel:
    """Return the model of a finished run.

    The order is: the logged models of MLflow 3, model folders among the run's artifacts (MLflow 2), files. The names of
    files decide about their kind, so that nothing is downloaded, unless `check` does it.

    :param name: the name of the logged model. Without it, the run's tag decides.
    :param check: a further check of a logged model that has its files.
    :param known: the info of logged models by id that was read before.
    :raises TrainingRunRefused: if the run has no PyTorch model, or several that match equally well.
    """
    return _Search(rest, run, name or run.tags.get(tags.LOGGED_MODEL_NAME) or None, check, known).model()


@dataclass(frozen=True, slots=True)
class _Search:
    rest: RunServer
    run: TrainingRun
    name: str | None
    check: Check | None
    known: Mapping[str, dict[str, Any]]

    def model(self) -> FoundModel:
        listing = cache(self._entries)
        choices: list[Choice] = []
        for models in self._logged(listing):
            choice = logged_models.choose(models, self.name, self._kind, self._subject)
            choices.append(choice)
            if choice.model and choice.kind:
                return FoundModel(
                    uri=choice.model.uri,
                    name=choice.model.name,
                    kind=choice.kind,
                    chosen=self._reason(choice.model, models),
                    skipped=tuple(_skipped(choices)),
                )
            if self.name:
                break
        return self._file(listing, choices)

    @property
    def _subject(self) -> str:
        return f"The training run {self.run.run_id}"

    def _logged(self, listing: weight_files.Listing) -> Iterator[list[LoggedModel]]:
        """Yield groups of logged models; a later group counts if the one before has no usable model."""
        if logged := list(self._of_mlflow_3()):
            yield logged
        history = self._of_mlflow_2()
        near = weight_files.search(listing, _NEAR, history)
        folders = self._folders(near.model_folders, history)
        if folders or self.name:
            yield folders
        deep = set(weight_files.search(listing).model_folders) - {model.name for model in folders}
        if deep:
            yield self._folders(deep, {})

    def _of_mlflow_3(self) -> Iterator[LoggedModel]:
        steps = self.run.model_steps
        if not steps:
            return
        found = {one: self.known[one] for one in steps if one in self.known}
        if len(steps) > 1:
            rows = self.rest.logged_models([self.run.experiment_id], models_of_run(self.run.run_id))
            found = {row["model_id"]: row for row in rows if row["model_id"] in steps}
        for number, model_id in enumerate(sorted(steps.keys() - found.keys(), key=lambda one: -steps[one])):
            try:
                row = self.rest.logged_model(model_id) if number < _OF_OTHER_RUNS_MAX else {}
            except Refused:
                row = {}
            found[model_id] = row or {"model_id": model_id, "name": "", "status": logged_models.DELETED}
        for model_id, row in found.items():
            yield LoggedModel(
                uri=f"models:/{model_id}",
                name=str(row.get("name") or ""),
                step=steps[model_id],
                created_ms=int(row.get("creation_timestamp_ms") or 0),
                status=_STATUS.sub("", str(row.get("status") or logged_models.READY)),
            )

    def _of_mlflow_2(self) -> dict[str, int]:
        """Return the folders of the models that MLflow 2 logged, with their times in milliseconds since 1970."""
        try:
            rows = json.loads(self.run.tags.get(_LOGGED_BY_MLFLOW_2, "[]"))
            return {str(row["artifact_path"]): _time_ms(row.get("utc_time_created")) for row in rows}
        except (ValueError, TypeError, KeyError, AttributeError):
            return {}  # Any client can set the tag.

    def _folders(self, paths: Iterable[str], history: dict[str, int]) -> list[LoggedModel]:
        found = dict.fromkeys(paths, 0) | history
        return [
            LoggedModel(uri=f"runs:/{self.run.run_id}/{path}", name=path, created_ms=created)
            for path, created in found.items()
        ]

    def _reason(self, model: LoggedModel, models: list[LoggedModel]) -> str:
        if model.uri.startswith("runs:/"):
            return f"the model folder {model.name} among the run's artifacts"
        of_name = f" named {self.name!r:.80}" if self.name else ""
        if len(models) == 1:
            return f"the only logged model{of_name}"
        return f"the newest of {len(models)} logged models{of_name}: {model}"

    def _kind(self, model: LoggedModel) -> logged_models.Kind | Unusable:
        """Return the kind of a logged model by the names of its files."""
        try:
            names = self._names(model, "data")
            kind = next((kind for name, kind in _KINDS_BY_FILE if name in names), None)
            others = [] if kind else [name for name in self._names(model) if not name.endswith(_DESCRIPTIONS)]
        except Refused as error:
            return Unusable(f"it {error.problem}", gone=True)
        if kind is None:
            return Unusable("it is not a PyTorch model") if others else Unusable("its files are gone", gone=True)
        if self.check is None:
            return kind
        problem = self.check(model.uri) if "MLmodel" in self._names(model) else "has no file MLmodel"
        return kind if problem is None else Unusable(f"it {problem}")

    def _names(self, model: LoggedModel, folder: str = "") -> set[str]:
        if model.uri.startswith("models:/"):
            files = self.rest.model_files(model.uri.removeprefix("models:/"), folder)
        else:
            files = self.rest.run_files(self.run.run_id, f"{model.name}/{folder}" if folder else model.name)
        return {entry["path"].rpartition("/")[2] for entry in files}

    def _entries(self, folder: str) -> list[tuple[str, bool]]:
        return [(entry["path"], bool(entry.get("is_dir"))) for entry in self.rest.run_files(self.run.run_id, folder)]

    def _file(self, listing: weight_files.Listing, choices: list[Choice]) -> FoundModel:
        artifacts, skipped = weight_files.search(listing), _skipped(choices)
        if not artifacts.complete:
            skipped.append(weight_files.INCOMPLETE)
        if not artifacts.files or self.name:
            # Of a model of MLflow 2 without files, only the tag is left.
            is_gone = any(choice.gone for choice in choices) if choices else _LOGGED_BY_MLFLOW_2 in self.run.tags
            raise self._no_model(skipped, is_gone)
        path, count = weight_files.choose(artifacts.files, self.run.run_id), len(artifacts.files)
        others = f" of {count}" if count > 1 else ""
        return FoundModel(
            uri=f"runs:/{self.run.run_id}/{path}",
            kind="file",
            chosen=f"the run logged no model; the file {path}{others}",
            skipped=tuple(skipped),
        )

    def _no_model(self, skipped: list[str], is_gone: bool) -> TrainingRunRefused:
        reasons = f" ({'; '.join(skipped[:_LISTED_MAX])})" if skipped else ""
        if is_gone:
            return TrainingRunRefused(
                self._subject,
                f"logged a model, but its files are gone{reasons}",
                "Restore the files in MLflow's artifact store, or repeat the training.",
                code="model_files_gone",
            )
        of_name = f" named {self.name!r:.200}" if self.name else ""
        return TrainingRunRefused(
            self._subject, f"has no PyTorch model{of_name}{reasons}", LOG_AGAIN, code="no_pytorch_model"
        )


def _skipped(choices: list[Choice]) -> list[str]:
    return [text for choice in choices for text in choice.skipped]


def _time_ms(text: object) -> int:
    """Return the time of MLflow 2's tag, for example ``2024-05-01 10:11:12.123456``, in UTC."""
    return int(datetime.fromisoformat(str(text)).replace(tzinfo=UTC).timestamp() * 1000)
