"""Runs, experiments and registered models of MLflow, as its REST API returns them. Their texts are not trusted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

UNFINISHED = ("RUNNING", "SCHEDULED")


def key_values(rows: list[dict[str, str]] | None) -> dict[str, str]:
    """Return the tags of a response as a dict. MLflow omits empty values."""
    return {row["key"]: row.get("value", "") for row in rows or []}


def _numbers(rows: list[dict[str, Any]] | None) -> dict[str, float]:
    # MLflow writes NaN and infinity as texts, and omits a value of 0.
    return {row["key"]: float(row.get("value") or 0.0) for row in rows or []}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """A run of MLflow's REST API. All its texts come from the training script and are not trusted.

    `ended_at_ms` is in milliseconds since 1970 by the clock of the training's machine, 0 for a run without an end.
    A metric without a number is NaN.
    `model_steps` are the training steps of the logged models by their ids, in MLflow's order, which is by random id.
    """

    run_id: str
    name: str
    experiment_id: str
    status: str
    deleted: bool
    ended_at_ms: int
    tags: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)
    model_steps: dict[str, int]

    @property
    def unfinished(self) -> bool:
        """True for a run that may still finish."""
        return not self.deleted and self.status in UNFINISHED

    @classmethod
    def from_json(cls, run: dict[str, Any]) -> TrainingRun:
        """Read one run of a response. MLflow omits empty fields."""
        info = run["info"]
        outputs = (run.get("outputs") or {}).get("model_outputs") or []
        return cls(
            run_id=info["run_id"],
            name=info.get("run_name") or "",
            experiment_id=info["experiment_id"],
            status=info["status"],
            deleted=info.get("lifecycle_stage") == "deleted",
            ended_at_ms=int(info.get("end_time") or 0),
            tags=key_values((run.get("data") or {}).get("tags")),
            metrics=_numbers((run.get("data") or {}).get("metrics")),
            model_steps={model["model_id"]: int(model.get("step") or 0) for model in outputs},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment of MLflow's REST API."""

    experiment_id: str
    name: str
    tags: dict[str, str]

    @classmethod
    def from_json(cls, experiment: dict[str, Any]) -> Experiment:
        """Read one experiment of a response."""
        return cls(
            experiment_id=experiment["experiment_id"],
            name=experiment["name"],
            tags=key_values(experiment.get("tags")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersionEntry:
    """A version of a registered model. Texts are not trusted. `stage` is the legacy one, ``None`` for none."""

    name: str
    version: int
    created_at_ms: int
    run_id: str
    description: str
    tags: dict[str, str]
    source: str = ""
    status: str = ""
    stage: str = ""

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> ModelVersionEntry:
        """Read one version of a response."""
        return cls(
            name=row["name"],
            version=int(row["version"]),
            created_at_ms=int(row.get("creation_timestamp") or 0),
            run_id=row.get("run_id") or "",
            description=row.get("description") or "",
            tags=key_values(row.get("tags")),
            source=row.get("source") or "",
            status=row.get("status") or "",
            stage=row.get("current_stage") or "",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredModel:
    """A registered model with its aliases and the versions that they name."""

    name: str
    aliases: dict[str, int]
    tags: dict[str, str]

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> RegisteredModel:
        """Read the model of a response."""
        aliases = {one["alias"]: int(one["version"]) for one in row.get("aliases") or []}
        return cls(name=row["name"], aliases=aliases, tags=key_values(row.get("tags")))
