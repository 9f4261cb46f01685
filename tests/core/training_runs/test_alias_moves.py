"""Versions that a roll back of an alias needs, from the alias log."""

from __future__ import annotations

from itertools import pairwise

import pytest

from onnx_release.records import AliasMove
from onnx_release.training_runs import tags
from onnx_release.training_runs.alias_moves import is_damaged, move_list_text, previous_holders


def along(alias: str, *versions: int | None) -> list[AliasMove]:
    """Return the moves of an alias along versions."""
    return [
        AliasMove(alias=alias, from_version=before, to_version=after, by="a", at="2026-01-01T00:00:00Z", why="x")
        for before, after in pairwise((None, *versions))
    ]


@pytest.mark.parametrize(
    ("versions", "count", "expected"),
    [
        ((1, 2, 3), 1, (2,)),
        ((1, 2, 3), 2, (2, 1)),
        ((1, 2, 3), 9, (2, 1)),
        ((1, 2, 3), 0, ()),
        ((1,), 1, ()),
        ((), 1, ()),
        # The next roll back goes to 3. A person may also return to 5.
        ((3, 4, 5, 4), 1, (5, 3)),
        ((3, 4, 5, 4, 5), 1, (4,)),
        ((3, 4, 5, 3), 1, (5, 4)),
    ],
)
def test_the_versions_before_the_current_one_are_kept(
    versions: tuple[int, ...], count: int, expected: tuple[int, ...]
) -> None:
    moves = [*along("other", 7, 8), *along("champion", *versions)]
    current = versions[-1] if versions else None
    assert previous_holders(moves, "champion", current, count) == expected


def test_the_last_version_of_a_removed_alias_is_kept() -> None:
    assert previous_holders(along("champion", 1, 2), "champion", None, 1) == (2,)


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", "[]", '[{"alias": 1}]'])
def test_a_list_that_cannot_be_read_is_damaged(text: str) -> None:
    good = {f"{tags.ALIAS_LOG}.1": move_list_text(along("a", 1)), "other": "["}
    assert not is_damaged(good)
    assert is_damaged(good | {f"{tags.ALIAS_LOG}.2": text})
