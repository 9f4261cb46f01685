"""Results of the checks of a deployment, and the collection of the checks of one subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_onnx.task_outcome import classified
from onnx_release.errors import ReleaseError
from onnx_release.records.base import Record
from onnx_release.text import shorten

FOUND_MAX_CHARACTERS = 500
# The advice for a task, which Airflow repeats. A check is not repeated.
_FOR_A_TASK = "Airflow tries again. If that does not help, "


class State(StrEnum):
    """State of one check. `SKIPPED` has a reason, and does not count as a problem."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


# Each check by its id, with a sentence for the documentation.
CHECKS: Mapping[str, str] = {
    "dag.exists": "Airflow has a DAG of releases.",
    "dag.parsed": "The DAG's file has no import error.",
    "dag.unpaused": "The DAG is not paused: a paused one queues its DAG runs for ever.",
    "dag.bucket": "The DAG has a bucket.",
    "dag.bucket_allowed": "The deployment allows the buckets that routes give to its releases.",
    "watch.unpaused": "The watch is not paused.",
    "watch.routes": "Each route of the watch leads to a DAG that exists.",
    "watch.experiments": "MLflow has the watched experiments.",
    "watch.rights": "The account may write to the newest run of each watched experiment. Nothing is changed.",
    "pool.exists": "Each pool exists and has enough slots for the tasks in it.",
    "airflow.plugin": "The plugin is loaded in this process, without an error.",
    "airflow.provider": "Airflow has the connection types `mlflow` and `s3store`.",
    "airflow.scheduler": "A scheduler has sent a heartbeat.",
    "airflow.triggerer": "A triggerer has sent a heartbeat. Waiting for a training run and the watch need it.",
    "airflow.dag_processor": "A DAG processor has sent a heartbeat.",
    "mlflow.connection": "The connection exists, has the type `mlflow` and an address.",
    "mlflow.version": "The server answers, and its version is at least the oldest tested one.",
    "mlflow.read": "The account may search experiments.",
    "mlflow.registry": "The account may create and delete a registered model.",
    "mlflow.runs": "The account may create an experiment and a run, and tag the run.",
    "mlflow.artifacts": "MLflow's artifact service stores and returns a file.",
    "mlflow.clean": "The experiment of the check is deleted.",
    "store.connection": "The connection exists, with an address or a region.",
    "store.bucket": "The bucket exists.",
    "store.list": "The account may list the objects below the prefix.",
    "store.delete": "The account may delete objects.",
    "store.multipart": "The account may begin and abort an upload in parts.",
    "store.put": "The account may put an object.",
    "store.get": "The object is read back with the same bytes.",
    "store.copy": "The store copies the object.",
    "store.clean": "The objects of the check are deleted.",
    "staging.uri": "The staging folder has a usable URI.",
    "staging.write": "This host may write to the staging folder.",
    "staging.copy": "The store copies from the staging folder to the bucket.",
    "worker.packages": "This host has the packages of the tasks, in the tested versions.",
    "worker.disk": "The disks of the work folders have free space.",
    "worker.pickles": "Pickles are refused, or a worker of root runs them with another account.",
    "worker.telemetry": "No library sends usage data.",
    "clock.mlflow": "The clocks of this host and of MLflow agree.",
    "clock.store": "The clocks of this host and of the store agree.",
    "clock.database": "The clocks of this host and of Airflow's database agree.",
    "check.ended": "The checks of a subject have ended in time.",
}


class Check(Record):
    """The result of one check.

    Attributes:
        id: The key in `CHECKS`.
        subject: The part of the deployment, such as ``MLflow (mlflow_default)``.
        state: The state.
        found: The found value, or the problem.
        action: The next step for a person. Empty if nothing is to do.
        dag_ids: The DAGs that need it. Empty: the whole deployment.
    """

    id: str
    subject: str
    state: State
    found: str
    action: str = ""
    dag_ids: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The id without its subject, for a table."""
        kind, _, name = self.id.partition(".")
        return kind if kind == "clock" else name.replace("_", " ")


class Noticed(Exception):
    """The end of a check that is neither passed nor refused: a warning, or a reason to skip it."""

    def __init__(self, state: State, found: str, action: str = "") -> None:
        super().__init__(found)
        self.state, self.found, self.action = state, found, action


def warning(found: str, action: str) -> Noticed:
    """Return the end of a check with a warning."""
    return Noticed(State.WARNING, found, action)


def failure(found: str, action: str) -> Noticed:
    """Return the end of a check with a problem for which no refusal exists."""
    return Noticed(State.FAILED, found, action)


def skipped(reason: str) -> Noticed:
    """Return the end of a check that cannot be made here."""
    return Noticed(State.SKIPPED, reason)


class Subject:
    """The checks of one part of the deployment, in order. Every problem is collected, and none is raised.

    :param name: the name in the table.
    :param dag_ids: the DAGs that need it.
    :param hide: removes secrets from a text.
    """

    def __init__(self, name: str, dag_ids: Sequence[str] = (), hide: Callable[[str], str] = str) -> None:
        self.name = name
        self.dag_ids = tuple(dag_ids)
        self.hide = hide
        self.checks: list[Check] = []
        self.errors: list[ReleaseError] = []

    def check(self, check_id: str, run: Callable[[], str], *, needs: Sequence[str] = ()) -> bool:
        """Make a check. Return True if it passed, also with a warning.

        :param run: returns the found value, or raises an error or `Noticed`.
        :param needs: ids of checks before it. If one of them has failed, this one is skipped.
        """
        lacking = [one for one in needs if not self.passed(one)]
        if lacking:
            self.add(check_id, State.SKIPPED, f"not checked: needs {', '.join(lacking)}")
            return False
        try:
            self.add(check_id, State.OK, run())
        except Noticed as notice:
            self.add(check_id, notice.state, notice.found, notice.action)
        except Exception as error:  # noqa: BLE001 - libraries and databases raise anything; the other checks go on
            self.add_error(check_id, error)
        return self.passed(check_id)

    def passed(self, check_id: str) -> bool:
        """Return True if the check was made and has not failed."""
        states = {check.state for check in self.checks if check.id == check_id}
        return bool(states) and states <= {State.OK, State.WARNING}

    def add(self, check_id: str, state: State, found: str, action: str = "") -> None:
        """Add a result."""
        text, action = shorten(self.hide(found), FOUND_MAX_CHARACTERS), shorten(self.hide(action), FOUND_MAX_CHARACTERS)
        self.checks.append(
            Check(id=check_id, subject=self.name, state=state, found=text, action=action, dag_ids=self.dag_ids)
        )

    def add_error(self, check_id: str, error: Exception) -> None:
        """Add the problem that an error describes."""
        known = isinstance(error, ReleaseError | AirflowNotFoundException | ImportError)
        found = classified(error) if known else ReleaseError(_UNEXPECTED[0], f"{_name(error)}", _UNEXPECTED[1])
        self.errors.append(found)
        action = found.action.removeprefix(_FOR_A_TASK)
        self.add(check_id, State.FAILED, f"{found.subject} {found.problem}", action[:1].upper() + action[1:])


_UNEXPECTED = ("The check", "Correct the reason, and check again.")


def _name(error: Exception) -> str:
    # The other lines have the query of a database.
    return f"ended with {type(error).__name__}: {shorten(str(error).partition(chr(10))[0], 200)}"
