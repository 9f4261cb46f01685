"""Every hostile input of the soak is refused by name, in this process."""

from __future__ import annotations

from pathlib import Path

from soak.hostile import scenarios


def test_every_hostile_input_is_refused_and_none_runs_code(tmp_path: Path) -> None:
    inputs = scenarios()
    accepted = []
    for number, one in enumerate(inputs):
        folder = tmp_path / str(number)
        folder.mkdir()
        if not one.refusal(folder):
            accepted.append(one.name)
    assert accepted == []
    assert len({one.name for one in inputs}) == len(inputs) > 160
