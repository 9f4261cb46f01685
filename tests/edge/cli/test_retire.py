"""The command ``airflow onnx-release retire``, and the task of the DAG that does the same."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_onnx.cli import commands, retire
from airflow_onnx.operators.retire_versions import RetireVersionsOperator
from onnx_release.training_runs import tags
from tests.edge.retirement.conftest import Registry, registry
from tests.refusals import failed

__all__ = ["registry"]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command for the model of a test, without Airflow's own set-up of a command."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")
    parser = argparse.ArgumentParser()
    for argument in commands.RETIRE_ARGUMENTS:
        argument.add_to_parser(parser)

    def run(*given: str) -> tuple[int, str, str]:
        place = ["--bucket", registry.folder.bucket, "--prefix", registry.folder.prefix, "--model", registry.model]
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            inspect.unwrap(retire.retire)(parser.parse_args([*place, *given]))
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


def test_the_versions_are_listed_then_deleted(registry: Registry, command: Command) -> None:
    assert command() == (0, f"{registry.folder.uri}: no version to retire, 0 versions stay.\n", "")
    numbers = [registry.released() for _ in range(3)]
    run = registry.run_of(numbers[0])
    keep = ("--keep-newest", "1")
    status, output, _ = command(*keep)
    assert (status, "2 versions to retire" in output, "--delete" in output) == (1, True, True)
    assert len([line for line in output.splitlines() if line.startswith(registry.model)]) == 3
    for given in (("--min-age-days", "0"), ("--min-age-days", "nan"), ("--made-before", "x"), ("--keep-newest", "-1")):
        status, output, error = command(*given, "--delete")
        assert (status, output, error.endswith("Nothing was deleted.\n")) == (2, "", True)
    assert registry.numbers() == numbers
    status, output, _ = command(*keep, "--delete", "--json", "--reason", "too\x1b[31m many\nlines")
    found = json.loads(output)
    assert (status, [row["retired"] for row in found["versions"]]) == (0, [True, True, False])
    assert registry.numbers() == numbers[2:]
    assert registry.tags_of(run)[tags.RETIRED].endswith(": too [31m many lines")


def test_the_task_lists_by_default_and_returns_the_decisions(registry: Registry) -> None:
    number = registry.released()
    run = registry.run_of(number)
    given: dict[str, Any] = {"task_id": "t", "bucket": registry.folder.bucket, "reason": " "}
    given["prefix"] = registry.folder.prefix.rstrip("/")
    rules = {"models": json.dumps([registry.model]), "keep_newest": "0", "made_before": "null"}
    run_of = SimpleNamespace(dag_id="retire_versions", run_id="manual__1", triggering_user_name="anna")
    context: Any = {"dag_run": run_of, "ti": SimpleNamespace()}
    found = RetireVersionsOperator(**given, rules=rules).execute(context)
    assert (found["dry_run"], found["totals"]) == (
        True,
        {"found": 1, "retired": 0, "kept": 0, "found_bytes": 15},
    )
    found = RetireVersionsOperator(**given, rules=rules, list_only="false").execute(context)
    assert (found["totals"]["retired"], registry.numbers()) == (1, [])
    assert "by anna: no alias for 90 days" in registry.tags_of(run)[tags.RETIRED]
    assert "(manual__1)" in registry.tags_of(run)[tags.RETIRED]
    json.dumps(found)
    with failed("wrong_parameter"):
        RetireVersionsOperator(**given, list_only="False").execute(context)
    with failed("wrong_field"):
        RetireVersionsOperator(**given, rules={"min_age_days": "0"}).execute(context)
