"""Every model of the zoo has the outcome that is written beside it, and in docs/zoo.md."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import pytest
import torch

from onnx_release.host import usable_cpus
from tests.zoo.catalogue import ZOO
from tests.zoo.entry import Entry, Exported
from tests.zoo.running import Outcome, release
from tests.zoo.table import HEADER, MEASURED, row

DOCS = Path(__file__).parents[2] / "docs" / "zoo.md"


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[str, Future[Outcome]]]:
    """Every entry's outcome to come: tracing a model keeps one processor busy, so as many go on as there are."""
    # A fork would inherit the threads of torch's and ONNX Runtime's pools, as locks that nobody releases.
    with ProcessPoolExecutor(usable_cpus(), mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield {entry.name: pool.submit(_released, entry.name) for entry in ZOO}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _released(name: str) -> Outcome:
    torch.set_num_threads(1)
    (entry,) = (entry for entry in ZOO if entry.name == name)
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        return release(entry, Path(scratch))


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_an_entry_has_the_outcome_that_is_written_beside_it(entry: Entry, outcomes: dict[str, Future[Outcome]]) -> None:
    outcome = outcomes[entry.name].result()
    assert outcome.meets(entry.expected), f"expected {entry.expected}, got {outcome}"


def test_the_zoo_is_wide() -> None:
    assert len({entry.name for entry in ZOO}) == len(ZOO) >= 25
    assert {entry.store for entry in ZOO} == {
        "pt2", "pickle", "mlflow 2", "script", "trace", "state dict", "safetensors", "lightning",
    }  # fmt: skip


def test_the_docs_show_every_entry_and_its_outcome() -> None:
    lines = [line for line in DOCS.read_text().splitlines() if line.startswith("| ") and set(line) - set("| -")]
    shown = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    told = [index for index, name in enumerate(HEADER) if name not in MEASURED]
    expected = [HEADER, *(row(entry, _as_expected(entry)) for entry in ZOO)]
    assert [[cells[i] for i in told] for cells in shown] == [[cells[i] for i in told] for cells in expected]


def _as_expected(entry: Entry) -> Outcome:
    expected = entry.expected
    return Outcome(rung=expected.rung) if isinstance(expected, Exported) else Outcome(refusal=expected.because)
