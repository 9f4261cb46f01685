"""Choice among the logged models of a training run, for the watch and the release. Nothing is read here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from onnx_release.errors import TrainingRunRefused
from onnx_release.training_runs import tags

Kind = Literal["pt2", "pickle"]
"""``pt2``: an exported program. ``pickle``: a pickle, or TorchScript, which has the same file name."""

READY, DELETED = "READY", "DELETED"
# Each check of a model costs requests.
CHECKED_MAX = 30
_LISTED_MAX = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedModel:
    """A model that a training script logged.

    :param uri: ``models:/m-…`` (MLflow 3), or ``runs:/<run id>/<folder>`` (MLflow 2).
    :param name: its name, or its folder in MLflow 2.
    :param step: the training step, 0 unless the script gave one.
    :param created_ms: the time of creation in milliseconds since 1970.
    :param status: ``READY``, ``DELETED``, or MLflow's status while a model is logged and after a failure.
    """

    uri: str
    name: str
    step: int = 0
    created_ms: int = 0
    status: str = READY

    def __str__(self) -> str:
        return f"{self.name!r:.80} ({self.uri}, step {self.step})"


@dataclass(frozen=True, slots=True)
class Unusable:
    """The reason why a logged model is not released. `gone` means that its files are missing."""

    reason: str
    gone: bool = False


@dataclass(slots=True)
class Choice:
    """The model of the newest step that can be released; None if there is none.

    :param skipped: the models that come before it, each with the reason, and models that were logged later.
    :param gone: True if a skipped model has lost its files.
    """

    model: LoggedModel | None
    kind: Kind | None
    skipped: list[str]
    gone: bool = False


def choose(
    models: Sequence[LoggedModel], name: str | None, check: Callable[[LoggedModel], Kind | Unusable], subject: str
) -> Choice:
    """Return the model of the newest step, and of its models of one name the newest by creation.

    A model that is not ready or that `check` finds unusable is skipped.

    :param name: the only name to consider, None for all.
    :param check: returns the kind of a ready model. It may send requests.
    :param subject: the training run, for messages.
    :raises TrainingRunRefused: if usable models of the newest step have different names, or none has the given name.
    """
    ordered = sorted(models, key=lambda model: (model.step, model.created_ms, model.uri), reverse=True)
    candidates = [model for model in ordered if name in (None, model.name)]
    if name is not None and not candidates:
        raise TrainingRunRefused(
            subject,
            f"has no logged model named {name!r:.200}; it has {_names(ordered) or 'none'}",
            f"Correct the parameter logged_model_name, or the run's tag {tags.LOGGED_MODEL_NAME}.",
            code="no_such_logged_model",
        )
    choice, checked = Choice(None, None, []), 0
    for step, of_step in groupby(candidates, key=lambda model: model.step):
        group, usable = list(of_step), dict[str, tuple[LoggedModel, Kind]]()
        for model in group:
            if model.name in usable:
                continue
            if checked == CHECKED_MAX:
                choice.skipped.append(f"models after the first {CHECKED_MAX}: they were not checked")
                return choice
            found = _by_status(model) or check(model)
            checked += model.status == READY
            if isinstance(found, Unusable):
                choice.skipped.append(f"{model}: {found.reason}")
                choice.gone |= found.gone
                continue
            usable[model.name] = (model, found)
            if len(usable) > 1:
                raise _several(subject, step, group)
        if usable:
            [(choice.model, choice.kind)] = usable.values()
            choice.skipped += _logged_later(choice.model, candidates)
            return choice
    return choice


def _by_status(model: LoggedModel) -> Unusable | None:
    if model.status == DELETED:
        return Unusable("it was deleted, or MLflow refuses to return it", gone=True)
    return None if model.status == READY else Unusable(f"its status is {model.status}")


def _logged_later(chosen: LoggedModel, models: Sequence[LoggedModel]) -> list[str]:
    """Return the models that were logged after the chosen one for an earlier step. The script may have omitted it."""
    later = [model for model in models if model.step < chosen.step and model.created_ms > chosen.created_ms]
    return [f"{model}: it was logged later, for an earlier step" for model in later[:_LISTED_MAX]]


def _several(subject: str, step: int, group: Sequence[LoggedModel]) -> TrainingRunRefused:
    newest = next(iter(group)).name
    return TrainingRunRefused(
        subject,
        f"logged models of different names at its newest step, {step}: {_names(group)}",
        f"Choose one: set the run's tag {tags.LOGGED_MODEL_NAME} or the parameter logged_model_name, for example to "
        f"{newest!r:.80}. A training script that gives log_model its step needs neither.",
        code="several_logged_models",
    )


def _names(models: Sequence[LoggedModel]) -> str:
    """Return the different names, the newest first."""
    names = list(dict.fromkeys(model.name for model in models))
    more = f" and {len(names) - _LISTED_MAX} more" if len(names) > _LISTED_MAX else ""
    return ", ".join(f"{name!r:.80}" for name in names[:_LISTED_MAX]) + more
