"""Moves of a registered model's aliases, as the model's numbered tags have them.

The tags ``onnx_release.alias_log.N`` each have a JSON list of moves. The list with the highest N has the newest moves,
and each list has its newest move last.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence

from onnx_release.errors import Refused
from onnx_release.records import AliasMove
from onnx_release.text import shorten
from onnx_release.training_runs import tags

log = logging.getLogger(__name__)

MOVES_MAX = 200
"""Moves that are kept for each registered model."""


def moves_in(model_tags: Mapping[str, str]) -> tuple[AliasMove, ...]:
    """Return the moves in the tags of a registered model, the newest last."""
    lists = move_lists(model_tags)
    return tuple(move for number in sorted(lists) for move in lists[number])[-MOVES_MAX:]


def move_lists(model_tags: Mapping[str, str]) -> dict[int, list[AliasMove]]:
    """Return the lists by number. A list that a person damaged is empty."""
    found: dict[int, list[AliasMove]] = {}
    for tag, text in model_tags.items():
        if not (matched := re.fullmatch(rf"{re.escape(tags.ALIAS_LOG)}\.(\d{{1,9}})", tag)):
            continue
        try:
            found[int(matched[1])] = [AliasMove.from_dict(row) for row in json.loads(text)]
        except (ValueError, TypeError, Refused) as error:
            log.warning("The tag %s is not a part of the alias log: %s", tag, shorten(error))
            found[int(matched[1])] = []
    return found


def is_damaged(model_tags: Mapping[str, str]) -> bool:
    """Return True if a list cannot be read: the log then lacks moves."""
    return not all(move_lists(model_tags).values())


def previous_holders(moves: Sequence[AliasMove], alias: str, current: int | None, count: int) -> tuple[int, ...]:
    """Return the versions that an alias was at before, the last one first.

    A version that the alias left for an older one is returned, but is not counted: a roll back needs the one before.

    Args:
        moves: The moves of one model, the newest last.
        alias: The alias.
        current: The version that has it now, which is left out. None: no version.
        count: The number of versions that a roll back may need.
    """
    own = [move for move in moves if move.alias == alias]
    left = {
        one.from_version for one in own if one.from_version and one.to_version and one.to_version < one.from_version
    }
    held = [version for move in reversed(own) for version in (move.to_version, move.from_version) if version]
    found: list[int] = []
    for version in dict.fromkeys(held):
        if len(set(found) - left) >= count:
            break
        if version != current:
            found.append(version)
    return tuple(found)


def move_list_text(moves: Sequence[AliasMove]) -> str:
    """Return the text of one list."""
    return json.dumps([move.to_dict() for move in moves], ensure_ascii=False)
