"""The expected outcome of every model of the zoo, also in docs/zoo.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch

from tests.zoo.catalogue import ZOO
from tests.zoo.entry import Entry, Exported, Store
from tests.zoo.running import Outcome, release
from tests.zoo.table import HEADER, MEASURED, row

DOCS = Path(__file__).parents[2] / "docs" / "zoo.md"


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Use one thread, because tracing uses one processor and other test workers use the rest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_an_entry_has_its_expected_outcome(entry: Entry, tmp_path: Path) -> None:
    outcome = release(entry, tmp_path)
    assert outcome.meets(entry.expected), f"expected {entry.expected}, got {outcome}"


def test_the_zoo_is_wide() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO) >= 25
    assert {entry.store for entry in ZOO} == set(get_args(Store))


def test_the_docs_show_every_entry_and_its_outcome() -> None:
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("| ") and set(line) - set("| -")]
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    compared = [index for index, name in enumerate(HEADER) if name not in MEASURED]
    expected = [HEADER, *(row(entry, _as_expected(entry)) for entry in ZOO)]
    assert [[cells[i] for i in compared] for cells in shown] == [[cells[i] for i in compared] for cells in expected]


def _as_expected(entry: Entry) -> Outcome:
    expected = entry.expected
    if isinstance(expected, Exported):
        return Outcome(rung=expected.rung)
    return Outcome(codes=(expected.code,), refusal=expected.part)
