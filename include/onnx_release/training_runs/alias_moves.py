"""Moves of a registered model's aliases, as the model's numbered tags have them.

The tags ``onnx_release.alias_log.N`` each have a JSON list of moves. The list with the highest N has the newest moves,
and each list has its newest move last.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence

from onnx_release.errors import Refused, shorten
from onnx_release.records import AliasMove
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


def move_list_text(moves: Sequence[AliasMove]) -> str:
    """Return the text of one list."""
    return json.dumps([move.to_dict() for move in moves], ensure_ascii=False)
