"""Log of the moves of a registered model's aliases, in tags of the model: see `training_runs.alias_moves`.

A move is written into one tag, so that a reader never finds half a list.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_onnx.log_lines import one_line
from airflow_onnx.tracking import model_registry
from onnx_release.records import AliasMove
from onnx_release.training_runs import tags
from onnx_release.training_runs.alias_moves import MOVES_MAX, move_list_text, move_lists, moves_in

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_onnx.hooks.mlflow import MlflowHook

# MLflow servers differ in the size of a tag; this one fits all of them, in bytes too.
_TAG_MAX_BYTES = 4000
_TEXT_MAX = {"alias": 64, "by": 100, "why": 500, "dag_run": 250}
_AUTOMATIC = "Airflow"


def append(hook: MlflowHook, name: str, move: AliasMove) -> None:
    """Add a move to the log of a registered model. The caller holds the `promotion_lock` of the model."""
    chunks = move_lists(model_registry.tags_of_model(hook, name))
    move = move.replace(**{field: one_line(getattr(move, field), size) for field, size in _TEXT_MAX.items()})
    number = max(chunks, default=0)
    moves = [*chunks.get(number, []), move]
    if number in chunks and (not chunks[number] or len(move_list_text(moves).encode()) > _TAG_MAX_BYTES):
        number, moves = number + 1, [move]
    model_registry.set_tag_of_model(hook, name, _key(number), move_list_text(moves))
    chunks[number] = moves
    kept = sum(map(len, chunks.values()))
    for old in sorted(chunks)[:-1]:
        kept -= len(chunks[old])
        if kept < MOVES_MAX:
            return
        model_registry.delete_tag_of_model(hook, name, _key(old))


def read(hook: MlflowHook, name: str) -> tuple[AliasMove, ...]:
    """Return the moves of a registered model, the newest last. A model that does not exist has none."""
    return moves_in(model_registry.tags_of_model(hook, name))


def user_of(context: Context) -> str:
    """Return the name of the user who triggered the DAG run, or ``Airflow``."""
    run: Any = context["dag_run"]
    return str(getattr(run, "triggering_user_name", None) or _AUTOMATIC)


def move_to(context: Context, alias: str, version: int, *, why: str, by: str = "") -> AliasMove:
    """Return a move of this DAG run, made now. `promotion.move_alias` fills in the version before.

    :param by: the person; empty for the user who triggered the DAG run.
    """
    return AliasMove(
        alias=alias,
        from_version=None,
        to_version=version,
        by=by or user_of(context),
        at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        why=why,
        dag_run=context["dag_run"].run_id,
    )


def _key(number: int) -> str:
    return f"{tags.ALIAS_LOG}.{number}"
