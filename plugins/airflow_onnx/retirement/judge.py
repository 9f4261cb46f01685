"""Decisions about the versions of a registered model: the reason why each goes or stays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_onnx import validation
from airflow_onnx.retirement.records import Fate, RetirementRules
from onnx_release.errors import ParameterRefused
from onnx_release.records import AliasMove
from onnx_release.training_runs import alias_moves, tags
from onnx_release.training_runs.records import ModelVersionEntry, RegisteredModel

DAY_S = 86400.0
# Models of this stage have no reader by it.
_UNUSED_STAGES = ("", "None", "Archived")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Decisions by the rules.

    :param bucket: the bucket of the releases; `prefix` is the folder in it. Versions of other objects stay.
    :param now_s: the time of MLflow's server in s since 1970.
    :param before_ms: the time of `made_before`: see `RetirementRules.before_ms`.
    """

    rules: RetirementRules
    bucket: str
    prefix: str
    now_s: float
    before_ms: float = math.inf

    def fates(self, model: RegisteredModel, versions: Sequence[ModelVersionEntry]) -> Iterator[Fate]:
        """Yield the decision about each version.

        :param versions: all versions of the model.
        """
        moves = alias_moves.moves_in(model.tags)
        newest = sorted((one.version for one in versions), reverse=True)[: self.rules.keep_newest]
        used = self._used(model, moves) | dict.fromkeys(newest, "it is one of the newest")
        used |= {version: f"it has the alias '{alias}'" for alias, version in model.aliases.items()}
        is_damaged = alias_moves.is_damaged(model.tags)
        for one in versions:
            stays = self._foreign(model.name, one)
            if not stays and is_damaged:
                stays = "the alias log of the model cannot be read"
            stays = stays or used.get(one.version, "") or self._young(one, moves)
            yield Fate(
                model=model.name,
                version=one.version,
                run_id=one.run_id,
                sha256=one.tags.get(tags.VERSION_SHA256, ""),
                precision=one.tags.get(tags.VERSION_PRECISION, ""),
                source=one.source,
                age_s=self._age_s(one),
                retires=not stays,
                reason=stays or self._why(),
            )

    def _foreign(self, name: str, one: ModelVersionEntry) -> str:
        """Return the reason why a version is not one that this package may delete. Empty if it is."""
        sha256 = one.tags.get(tags.VERSION_SHA256, "")
        if not sha256:
            return "another program made it"
        if not is_release_folder(one.source, self.bucket, self.prefix, name, one.run_id, sha256):
            return "its objects are not in the folder of the releases"
        if one.status != "READY":
            return "its registration has not ended"
        return f"it is in the stage {one.stage}" if one.stage not in _UNUSED_STAGES else ""

    def _used(self, model: RegisteredModel, moves: Sequence[AliasMove]) -> dict[int, str]:
        """Return the versions that a roll back needs, with the reason."""
        count = self.rules.keep_previous
        return {
            version: f"the alias '{alias}' was at it before"
            for alias in {move.alias for move in moves}
            for version in alias_moves.previous_holders(moves, alias, model.aliases.get(alias), count)
        }

    def _young(self, one: ModelVersionEntry, moves: Sequence[AliasMove]) -> str:
        if one.created_at_ms >= self.before_ms:
            return f"it was not made before {self.rules.made_before}"
        limit_s = self.rules.min_age_days * DAY_S
        if self._age_s(one) < limit_s:
            return f"it is younger than {self.rules.min_age_days:g} days"
        left = [_seconds(move.at) for move in moves if one.version in (move.from_version, move.to_version)]
        # A time that is unknown, or ahead of MLflow's clock, counts as now.
        if any(at is None or self.now_s - at < limit_s for at in left):
            return f"an alias left it less than {self.rules.min_age_days:g} days ago"
        return ""

    def _age_s(self, one: ModelVersionEntry) -> float:
        return self.now_s - one.created_at_ms / 1000

    def _why(self) -> str:
        rules = self.rules
        return f"no alias for {rules.min_age_days:g} days, and not one of the newest {rules.keep_newest}"


def is_release_folder(source: str, bucket: str, prefix: str, name: str, run_id: str, sha256: str) -> bool:
    """Return True if a release gives this folder to the artifact of a training run. All texts are not trusted."""
    try:
        of_run = validation.run_folder_uri(bucket, prefix, name, run_id)
    except ParameterRefused:
        return False
    return source.rstrip("/") == validation.artifact_uri(of_run, sha256)


def _seconds(text: str) -> float | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
