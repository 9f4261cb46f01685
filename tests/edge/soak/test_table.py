"""Table and exit status of a soak."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from soak.__main__ import main, status
from soak.scenario import Outcome, Scenario
from soak.scenarios import SCENARIOS
from soak.statements import Violation
from soak.table import document, rows, table

SCENARIO = Scenario(name="one", kind="task killed", run=lambda rig, random: Outcome())
KILLED = Outcome(injected={"task killed": 4})
LOST = Outcome(injected={"task killed": 3}, violations=[Violation("lost", "an object"), Violation("orphan", "another")])
SKIPPED = Outcome(skipped="no small disk")


def test_faults_of_a_failed_scenario_have_not_survived() -> None:
    (row,) = rows([(SCENARIO, KILLED), (SCENARIO, LOST)])
    assert (row["kind"], row["injected"], row["survived"]) == ("task killed", 7, 4)
    assert (row["lost"], row["orphan"], row["doubled"], row["untrue"]) == (1, 1, 0, 0)


def test_refused_inputs_are_counted_and_a_scenario_counts_once() -> None:
    inputs = Scenario(name="inputs", kind="hostile input", run=SCENARIO.run)
    one_accepted = Outcome(injected={"hostile input": 9}, survived=8, problem="not refused: x", canaries=1)
    two_kinds = Outcome(injected={"503": 2, "cut": 1}, violations=[Violation("lost", "an object")])
    found = {row["kind"]: row for row in rows([(inputs, one_accepted), (SCENARIO, two_kinds)])}
    assert (found["hostile input"]["injected"], found["hostile input"]["survived"]) == (9, 8)
    assert [found[kind]["lost"] for kind in ("503", "cut")] == [1, 0]


def test_the_table_has_a_sum_and_names_the_skipped() -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    disk = Scenario(name="disk", kind="disk full", run=SCENARIO.run)
    console.print(table([(SCENARIO, LOST), (disk, SKIPPED)], "Soak"))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert ["disk", "full", "skipped", *"0000000"] in lines
    assert ["all", "3", "0", "1", "0", "0", "1", "0", "0"] in lines


@pytest.mark.parametrize(
    ("outcome", "at_rest", "expected"),
    [
        (KILLED, [], 0),
        (SKIPPED, [], 0),
        (LOST, [], 1),
        (Outcome(problem="refused"), [], 1),
        (Outcome(canaries=1), [], 1),
        (KILLED, [Violation("orphan", "a lock")], 1),
    ],
)
def test_the_exit_status(outcome: Outcome, at_rest: list[Violation], expected: int) -> None:
    assert status([(SCENARIO, outcome)], at_rest) == expected


def test_the_document_has_seed_and_sentences() -> None:
    found = document([(SCENARIO, LOST)], [Violation("untrue", "a run")], seed=7, wall_s=61.04)
    assert (found["seed"], found["wall_s"], found["at_rest"]) == (7, 61.0, [{"kind": "untrue", "text": "a run"}])
    assert found["scenarios"][0]["name"] == "one"
    assert found["host"]["processors"] >= 1


def test_the_names_of_the_scenarios_are_unique_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert len(set(names)) == len(names)
    assert main(["--list", "--only", "disk"]) == 0
    assert capsys.readouterr().out.splitlines() == ["disk full in the export", "disk full in a download"]
