"""DAG runs and pools as Airflow's API returns them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stack.airflow_api import AirflowApi

ALIVE = frozenset({"queued", "running"})
_PAGE = 100


@dataclass(frozen=True, slots=True)
class AirflowState:
    """States of DAG runs by (DAG, DAG run), and the occupied slots of the pools that have any."""

    dag_runs: dict[tuple[str, str], str] = field(default_factory=dict)
    occupied: dict[str, int] = field(default_factory=dict)

    def is_alive(self, dag_run_id: str) -> bool:
        """Return True if a DAG run with this id is queued or runs."""
        return any(run == dag_run_id and state in ALIVE for (_, run), state in self.dag_runs.items())

    def has_succeeded(self, dag_run_id: str) -> bool:
        """Return True if a DAG run with this id has succeeded."""
        return any(run == dag_run_id and state == "success" for (_, run), state in self.dag_runs.items())

    def alive(self) -> set[str]:
        """Return the ids of all DAG runs that are queued or run."""
        return {run for (_, run), state in self.dag_runs.items() if state in ALIVE}


def read_airflow(api: AirflowApi, dag_ids: tuple[str, ...], pools: tuple[str, ...]) -> AirflowState:
    """Read the DAG runs of the DAGs that release, and the pools that they use."""
    found: dict[tuple[str, str], str] = {}
    for dag_id in dag_ids:
        seen = 0
        while True:
            page = api.get(f"/dags/{dag_id}/dagRuns", limit=_PAGE, offset=seen, order_by="id")
            found |= {(dag_id, run["dag_run_id"]): str(run["state"]) for run in page["dag_runs"]}
            seen += len(page["dag_runs"])
            if seen >= page["total_entries"] or not page["dag_runs"]:
                break
    slots = {pool["name"]: int(pool["occupied_slots"]) for pool in api.get("/pools", limit=_PAGE)["pools"]}
    return AirflowState(found, {name: slots[name] for name in pools if slots.get(name)})
