"""Releases of unlike models of all experiments by one watch: a registered model for each, and no mixed alias."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stack.release import WATCH_DAG_ID

from .embedded import RunningStack

pytestmark = pytest.mark.system

TIMEOUT_S = 600
STATUS, REGISTERED_MODEL = "onnx_release.status", "onnx_release.registered_model"
ALIAS = "onnx_release.alias"


@dataclass(frozen=True)
class Ended:
    """The training runs, as `unlike_runs` printed them, with the tags that their releases left."""

    runs: list[dict[str, Any]]
    tags: dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def ended(stack: RunningStack, client: Any) -> Ended:
    """Log five runs that ended nine days ago and start their releases by one range over every experiment."""
    first = datetime.now(UTC) - timedelta(days=9)
    printed = stack.python("-m", "tests.system.unlike_runs", str(int(first.timestamp() * 1000)))
    runs = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    conf = {
        "experiments": ["*"],
        "since": (first - timedelta(minutes=1)).isoformat(),
        "until": (first + timedelta(hours=1)).isoformat(),
        "at_once": 3,
    }
    body = {"dag_run_id": "unlike_models", "logical_date": None, "conf": conf}
    stack.api.post(f"/dags/{WATCH_DAG_ID}/dagRuns", body)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        tags = {run["run_id"]: client.get_run(run["run_id"]).data.tags for run in runs}
        if all(found.get(STATUS) in ("released", "refused", "failed") for found in tags.values()):
            return Ended(runs, tags)
        assert time.monotonic() < deadline, {run: found.get(STATUS) for run, found in tags.items()}
        time.sleep(2.0)


def test_each_model_of_each_experiment_has_its_own_registered_model(ended: Ended) -> None:
    sources: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for run in ended.runs:
        sources[ended.tags[run["run_id"]][REGISTERED_MODEL]].add((run["experiment"], run["logged_as"]))
    assert len(sources) == 4
    assert all(len(found) == 1 for found in sources.values()), sources


def test_an_alias_keeps_one_contract(ended: Ended, client: Any) -> None:
    contracts: dict[str, set[str]] = defaultdict(set)
    for run in ended.runs:
        tags = ended.tags[run["run_id"]]
        if tags.get(ALIAS):
            contracts[tags[REGISTERED_MODEL]].add(str(run["inputs"]))
    assert len(contracts) == 4
    assert all(len(found) == 1 for found in contracts.values()), contracts
    for name in contracts:
        holder = client.get_model_version_by_alias(name, "candidate")
        assert ended.tags[holder.run_id][STATUS] == "released"


def test_the_run_with_another_contract_does_not_get_the_alias_and_the_others_do(ended: Ended) -> None:
    # Releases of one model run side by side, so the first to end decides the contract.
    [other] = [run["run_id"] for run in ended.runs if not ended.tags[run["run_id"]].get(ALIAS)]
    older, newer = (run["run_id"] for run in ended.runs[-2:])
    assert other in {older, newer}
    if other == newer:
        assert ended.tags[newer]["onnx_release.reason_code"] == "contract_change"
        assert "7" in ended.tags[newer]["onnx_release.reason"]
    else:
        assert ended.tags[older][STATUS] == "released"
        assert "newer" in ended.tags[older]["onnx_release.alias_note"]
