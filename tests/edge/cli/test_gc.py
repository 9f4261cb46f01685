"""The command ``airflow onnx-release gc``, and the task of the DAG that does the same."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable
from typing import Any

import pytest

from airflow_onnx.cli import commands, gc
from airflow_onnx.operators.collect_leftovers import CollectLeftoversOperator
from tests.edge.leftovers.conftest import Releases, releases
from tests.refusals import failed

__all__ = ["releases"]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(releases: Releases, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command for the folder of a test, without Airflow's own set-up of a command."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")
    parser = argparse.ArgumentParser()
    for argument in commands.GC_ARGUMENTS:
        argument.add_to_parser(parser)

    def run(*given: str) -> tuple[int, str, str]:
        place = ["--bucket", releases.folder.bucket, "--prefix", releases.folder.prefix]
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            inspect.unwrap(gc.gc)(parser.parse_args([*place, *given]))
        output = capsys.readouterr()
        return int(ended.value.code or 0), output.out, output.err

    return run


def test_the_exit_status_shows_leftovers_and_a_search_that_failed(releases: Releases, command: Command) -> None:
    assert command() == (0, f"{releases.folder.uri}: no leftovers.\n", "")
    uri = releases.put(releases.run())
    status, output, _ = command()
    assert (status, output) == (0, f"{releases.folder.uri}: no leftovers.\n"), "the objects are young"
    for given in (("--grace-hours", "0"), ("--grace-hours", "nan"), ("--bucket", "../x"), ("--prefix", "a b")):
        status, output, error = command(*given, "--delete")
        assert (status, output) == (2, "")
        assert error.startswith("gc: ")
        assert error.endswith("Nothing was removed.\n")
    assert releases.keys(uri)


def test_leftovers_are_listed_then_removed(
    releases: Releases, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = releases.put(releases.run())
    monkeypatch.setattr("airflow_onnx.defaults.GRACE_MIN_H", -1.0)
    none = ("--grace-hours", "-0.01")
    status, output, _ = command(*none)
    assert (status, uri in output, "--delete" in output) == (1, True, True)
    status, output, _ = command(*none, "--json")
    (row,) = [one for one in json.loads(output)["leftovers"] if one["kind"] == "objects"]
    assert (status, row["place"], row["objects"], row["removed"]) == (1, uri, 2, False)
    status, output, _ = command(*none, "--delete")
    assert (status, f"{uri}  " in output, releases.keys(uri)) == (0, True, [])


def test_the_task_lists_by_default_and_returns_the_findings(
    releases: Releases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_onnx.defaults.GRACE_MIN_H", -1.0)
    uri = releases.put(releases.run())
    given: dict[str, Any] = {"task_id": "t", "bucket": releases.folder.bucket, "grace_h": "-0.01"}
    given["prefix"] = releases.folder.prefix.rstrip("/")
    found = CollectLeftoversOperator(**given).execute({})  # type: ignore[typeddict-item]
    assert [row["place"] for row in found["leftovers"] if row["kind"] == "objects"] == [uri]
    assert (found["dry_run"], found["totals"]["removed"]) == (True, 0)
    found = CollectLeftoversOperator(**given, list_only="false").execute({})  # type: ignore[typeddict-item]
    assert (found["totals"]["removed"], releases.keys(uri)) == (1, [])
    json.dumps(found)
    with failed("wrong_dry_run"):
        CollectLeftoversOperator(**given, list_only="False").execute({})  # type: ignore[typeddict-item]
