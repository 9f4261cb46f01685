"""Log of the moves of a registered model's aliases, in tags of the model.

The tags ``onnx_release.alias_log.N`` each have a JSON list of moves. The list with the highest N has the newest moves,
and each list has its newest move last. A move is written into one tag, so that a reader never finds half a list.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_onnx.log_lines import one_line
from airflow_onnx.tracking import model_registry
from onnx_release.errors import Refused, shorten
from onnx_release.records import AliasMove
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_onnx.hooks.mlflow import MlflowHook

log = logging.getLogger(__name__)

MOVES_MAX = 200
"""Moves that are kept for each registered model."""

# MLflow servers differ in the size of a tag; this one fits all of them, in bytes too.
_TAG_MAX_BYTES = 4000
_TEXT_MAX = {"alias": 64, "by": 100, "why": 500, "dag_run": 250}
_AUTOMATIC = "Airflow"


def append(hook: MlflowHook, name: str, move: AliasMove) -> None:
    """Add a move to the log of a registered model. The caller holds the `promotion_lock` of the model."""
    chunks = _chunks(model_registry.tags_of_model(hook, name))
    move = move.replace(**{field: one_line(getattr(move, field), size) for field, size in _TEXT_MAX.items()})
    number = max(chunks, default=0)
    moves = [*chunks.get(number, []), move]
    if number in chunks and (not chunks[number] or len(_text(moves).encode()) > _TAG_MAX_BYTES):
        number, moves = number + 1, [move]
    model_registry.set_tag_of_model(hook, name, _key(number), _text(moves))
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


def moves_in(model_tags: Mapping[str, str]) -> tuple[AliasMove, ...]:
    """Return the moves in the tags of a registered model, the newest last."""
    chunks = _chunks(model_tags)
    return tuple(move for number in sorted(chunks) for move in chunks[number])[-MOVES_MAX:]


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


def _chunks(model_tags: Mapping[str, str]) -> dict[int, list[AliasMove]]:
    """Return the lists by number. A list that a person damaged is empty."""
    found: dict[int, list[AliasMove]] = {}
    for key, text in model_tags.items():
        if not (matched := re.fullmatch(rf"{re.escape(tags.ALIAS_LOG)}\.(\d{{1,9}})", key)):
            continue
        try:
            found[int(matched[1])] = [AliasMove.from_dict(row) for row in json.loads(text)]
        except (ValueError, TypeError, Refused) as error:
            log.warning("The tag %s is not a part of the alias log: %s", key, shorten(error))
            found[int(matched[1])] = []
    return found


def _key(number: int) -> str:
    return f"{tags.ALIAS_LOG}.{number}"


def _text(moves: list[AliasMove]) -> str:
    return json.dumps([move.to_dict() for move in moves], ensure_ascii=False)
