"""Versions that an alias has left for an older one, from the alias log of a registered model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from onnx_release.records import AliasMove
from onnx_release.training_runs import alias_moves, tags


def roll_backs(moves: Sequence[AliasMove]) -> dict[int, AliasMove]:
    """Return the newest move back from each version. An alias that has returned to the version is left out.

    :param moves: the moves of one model, the newest last.
    """
    back: dict[tuple[str, int], AliasMove] = {}
    for move in moves:
        if move.to_version is not None:
            back.pop((move.alias, move.to_version), None)
        if move.from_version and move.to_version and move.to_version < move.from_version:
            back[move.alias, move.from_version] = move
    return {move.from_version: move for move in back.values() if move.from_version}


def roll_backs_in(model_tags: Mapping[str, str]) -> Mapping[int, AliasMove]:
    """Return the moves back in the tags of a registered model. A log that was read before is not read again."""
    prefix = f"{tags.ALIAS_LOG}."
    return _of_log(tuple(sorted((key, text) for key, text in model_tags.items() if key.startswith(prefix))))


@lru_cache(maxsize=2000)
def _of_log(log: tuple[tuple[str, str], ...]) -> Mapping[int, AliasMove]:
    return roll_backs(alias_moves.moves_in(dict(log)))
