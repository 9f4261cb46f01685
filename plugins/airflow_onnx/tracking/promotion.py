"""Rules for moving an alias or a legacy stage to a version.

It moves only to the inputs and outputs of the version that has it, and never from a newer training run to an older one,
unless a person asks for either.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.tracking import alias_log, model_registry
from airflow_onnx.tracking.contract import contract_of
from airflow_onnx.tracking.promotion_lock import Lock
from airflow_onnx.tracking.promotion_policy import PromotionPolicy
from onnx_release.errors import Refused
from onnx_release.records import AliasMove, BenchmarkReport, Contract, ModelVersion, Precision, TrainedModel
from onnx_release.records.base import Record
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook

log = logging.getLogger(__name__)

_DIFFERENCES_MAX = 10


class MoveRules(Record):
    """Permissions of a release to move an alias."""

    contract_change: Literal["refuse", "allow"] = "refuse"
    alias_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A version to promote, or an artifact that becomes one.

    :param version: the number of the version, None before its registration.
    :param ended_at_ms: the end of its training run in milliseconds since 1970.
    """

    model_name: str
    contract: Contract
    training_run_id: str
    ended_at_ms: int
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """The decision about one alias or stage.

    :param target: the alias or stage as the start of a sentence, such as ``The alias 'candidate'``.
    :param stays: the reason why it stays at another version, None if it belongs to the candidate.
    :param differences: the differences between the contracts of both versions, which are allowed.
    :param is_there: the candidate has it already.
    """

    target: str
    stays: str | None = None
    differences: tuple[str, ...] = ()
    is_there: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Promoter:
    """Decisions about the alias and the stage of one registered model.

    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`, for versions of other programs in an S3 store.
    """

    hook: MlflowHook
    s3_conn_id: str
    rules: MoveRules

    def moves(
        self,
        candidate: Candidate,
        policy: PromotionPolicy,
        precision: Precision,
        benchmark: BenchmarkReport | None = None,
    ) -> dict[str, Move]:
        """Decide about every alias of a release.

        :param benchmark: the measurement of the candidate. The champion's alias stays at a version that was not
            measured beside it. None before the measurement.
        :raises TrackingRefused: if a version that has one of the aliases has other inputs or outputs.
        """
        found = {alias: self.alias_move(candidate, alias) for alias in policy.aliases(precision)}
        alias = policy.champion(precision)
        if alias is None or benchmark is None or found[alias].stays or found[alias].is_there:
            return found
        holder = model_registry.alias_holder(self.hook, candidate.model_name, alias)
        compared = benchmark.champion.version if benchmark.champion else None
        if holder is not None and int(holder.version) != compared:
            move = found[alias]
            stays = f"{move.target} stays at version {holder.version}: the model was not compared with this version"
            found[alias] = Move(target=move.target, stays=f"{stays}. Release the training run again")
        return found

    def alias_move(self, candidate: Candidate, alias: str) -> Move:
        """Decide about the alias.

        :raises TrackingRefused: if the version that has it has other inputs or outputs.
        """
        holder = model_registry.alias_holder(self.hook, candidate.model_name, alias)
        return self._move(candidate, f"The alias '{alias}'", holder)

    def stage_move(self, candidate: Candidate, stage: str) -> Move:
        """Decide about the legacy stage, as for an alias."""
        holder = model_registry.stage_holder(self.hook, candidate.model_name, stage)
        return self._move(candidate, f"The stage '{stage}'", holder)

    def _move(self, candidate: Candidate, target: str, holder: Any) -> Move:
        if holder is None or int(holder.version) == candidate.version:
            return Move(target=target, is_there=holder is not None)
        if stays := self._is_newer(holder, candidate):
            return Move(target=target, stays=f"{target} stays at version {holder.version}: {stays}")
        try:
            differences = contract_of(self.hook, self.s3_conn_id, holder).differences(candidate.contract)
        except TrackingRefused:
            if self.rules.contract_change == "refuse":
                raise
            differences = ["its inputs and outputs are unknown"]
        if differences and self.rules.contract_change == "refuse":
            more = f" and {len(differences) - _DIFFERENCES_MAX} more" if len(differences) > _DIFFERENCES_MAX else ""
            raise TrackingRefused(
                f"{target} of model '{candidate.model_name}'",
                f"is at version {holder.version}, and the new model has other inputs or outputs: "
                f"{'; '.join(differences[:_DIFFERENCES_MAX])}{more}",
                f"Name a model of its own by the tag {tags.MODEL_NAME} on the run, choose another alias, or set "
                "contract_change to allow if all clients can use the new model.",
                code="contract_change",
            )
        return Move(target=target, differences=tuple(differences))

    def _is_newer(self, holder: Any, candidate: Candidate) -> str | None:
        """Return the reason why the version that has the alias is newer, or None."""
        if self.rules.alias_back or holder.run_id == candidate.training_run_id:
            return None
        ended_at_ms = training_end_ms(self.hook, holder)
        if candidate.ended_at_ms > ended_at_ms:
            return None
        when = "later" if candidate.ended_at_ms < ended_at_ms else "at the same time"
        return f"its training run {holder.run_id} ended {when}. Set alias_back to move it to this older run"


def move_alias(hook: MlflowHook, name: str, move: AliasMove, lock: Lock) -> None:
    """Move an alias and log the move.

    :param move: a move to a version. Its `from_version` is replaced by the version that has the alias.
    :param lock: the entry of the caller from `promotion_lock`.
    :raises Transient: if others have removed the entry, because the caller was slow. They may have moved the alias.
    """
    holder = model_registry.alias_holder(hook, name, move.alias)
    before = int(holder.version) if holder else None
    if before != move.to_version:
        lock.require()
        model_registry.set_alias(hook, name, move.alias, int(move.to_version or 0))
    last = next((one for one in reversed(alias_log.read(hook, name)) if one.alias == move.alias), None)
    # An earlier try of the task may have moved the alias without the log, and so may a person in MLflow.
    if before != move.to_version or last is None or last.to_version != move.to_version:
        was = before if before != move.to_version else last and last.to_version
        alias_log.append(hook, name, move.replace(from_version=was))


def tag_training_run(hook: MlflowHook, version: Any, move: AliasMove) -> None:
    """Write the aliases of a version into the tags of its training run, if the version is the run's current release.

    A run that MLflow refuses to tag gets a line in the task's log: the alias has moved.

    :param version: MLflow's version that had the alias or has it now.
    """
    name, number = version.name, int(version.version)
    precision = version.tags.get(tags.VERSION_PRECISION) or Precision.EXACT
    version_tag, alias_tag, note_tag = (
        tag if precision == Precision.EXACT else tags.of_precision(tag, precision)
        for tag in (tags.VERSION, tags.ALIAS, tags.ALIAS_NOTE)
    )
    aliases = model_registry.get_version(hook, name, number).aliases
    moved_away = f"The alias '{move.alias}' was moved to version {move.to_version} by {move.by}: {move.why}"
    try:
        with hook.mlflow_errors(f"The training run {version.run_id}"):
            found = hook.client.get_run(version.run_id or "").data.tags
        if (found.get(tags.REGISTERED_MODEL), found.get(version_tag)) != (name, str(number)):
            return
        note = "" if number == move.to_version else moved_away
        texts = {alias_tag: ", ".join(sorted(aliases)), note_tag: note}
        hook.set_tags(version.run_id, tags.shortened(texts))
    except Refused as failure:
        log.warning("The move of the alias is not recorded on the training run: %s", failure)


def unregistered(trained_model: TrainedModel, model_name: str, contract: Contract) -> Candidate:
    """Return an artifact as the candidate of a promotion, before it has a version."""
    return Candidate(
        model_name=model_name,
        contract=contract,
        training_run_id=trained_model.training_run_id,
        ended_at_ms=trained_model.ended_at_ms or int(1000 * time.time()),
    )


def registered(hook: MlflowHook, version: ModelVersion, contract: Contract) -> Candidate:
    """Return a registered version as the candidate of a promotion."""
    found = model_registry.get_version(hook, version.name, version.version)
    return Candidate(
        model_name=version.name,
        contract=contract,
        training_run_id=version.training_run_id,
        ended_at_ms=training_end_ms(hook, found),
        version=version.version,
    )


def training_end_ms(hook: MlflowHook, version: Any) -> int:
    """Return the end of a version's training run; without a finished run, the creation of the version."""
    end = None
    if version.run_id:
        try:
            with hook.mlflow_errors(f"The training run {version.run_id}"):
                end = hook.client.get_run(version.run_id).info.end_time
        except Refused:
            pass  # The run was deleted permanently.
    return int(end or version.creation_timestamp)
