"""Notes of the DAG runs of a release: training run and model, and at the end the result.

The watch gives the note of the start with its trigger. Another DAG run gets one from its parameters when it starts. A
task cannot change the note of its DAG run. The last task leaves the note in XCom, and this listener writes it where
Airflow has its database: in the scheduler, or in the API server if a person marks the DAG run.
"""

from __future__ import annotations

from typing import Any

from airflow.listeners import hookimpl

from airflow_onnx.dag_roles import RELEASING
from onnx_release.text import printable

XCOM_KEY = "onnx_release_note"
# The column of Airflow's database.
_MAX_CHARACTERS = 1000
_TITLE_MAX_CHARACTERS = 250
_ARROW = " → "
# A line with one of these signs is a result, and another result replaces it.
_SIGNS = {"Released with a warning": "▲", "Released": "●", "Refused": "✖", "Failed": "‼"}
# A DAG run of a release that a person or the watch started has one of these parameters.
_PARAMETERS = ("training_run_id", "model_uri")


def title(run_name: str | None, training_run_id: str, model_name: str | None) -> str:
    """Return the first line of a note, for example ``small → radio-onnx``."""
    from airflow_onnx.tracking.run_description import escaped

    line = f"{run_name or training_run_id}{_ARROW}{model_name}" if model_name else run_name or training_run_id
    return escaped(printable(line[:_TITLE_MAX_CHARACTERS]))


def result(headline: str) -> str:
    """Return the line of a result, with a sign."""
    from airflow_onnx.tracking.run_description import escaped

    sign = next((sign for state, sign in _SIGNS.items() if headline.startswith(state)), "‼")
    return f"{sign} {escaped(printable(headline))}"


def joined(before: str, new: str) -> str:
    """Return a note with a title and a result after any text of a person.

    :param before: the note so far.
    :param new: title and result as two lines.
    """
    first, _, last = new.partition("\n")
    signs = tuple(f"{sign} " for sign in _SIGNS.values())
    kept = [line.rstrip() for line in before.splitlines() if not line.startswith(signs)]
    # The title goes before the result again. The release DAG may have another model name than the watch expected.
    run_name = first.partition(_ARROW)[0]
    kept = [line for line in kept if line != run_name and not line.startswith(f"{run_name}{_ARROW}")]
    own = "\n".join(kept).strip()
    # Two spaces end a line of Markdown.
    text = "  \n".join(part for part in (own, first, last) if part)
    return text if len(text) <= _MAX_CHARACTERS else before


@hookimpl
def on_dag_run_running(dag_run: Any, msg: str) -> None:
    """Write the title of a DAG run that has no note."""
    if _source(dag_run) and not dag_run.note:
        dag_run.note = _first_title(dag_run)


@hookimpl
def on_dag_run_success(dag_run: Any, msg: str) -> None:
    """Write the result into the note of a DAG run."""
    _write(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: Any, msg: str) -> None:
    """Write the result into the note of a DAG run."""
    _write(dag_run)


def _source(dag_run: Any) -> str:
    """Return the training run or the model URI of a release, empty for any other DAG run."""
    conf = dag_run.conf or {}
    return next((str(found) for name in _PARAMETERS if (found := conf.get(name))), "")


def _first_title(dag_run: Any) -> str:
    """Return the title from the parameters: the scheduler has no connection to MLflow for the name of the run."""
    return title(None, _source(dag_run), (dag_run.conf or {}).get("model_name"))


def _has_role(dag_run: Any) -> bool:
    """Return True for a DAG with a task group of a release, or with a schedule: its DAG runs have no parameters."""
    # The scheduler sets the attribute.
    return not set(RELEASING).isdisjoint(getattr(getattr(dag_run, "dag", None), "tags", ()))


def _write(dag_run: Any) -> None:
    from airflow.models.xcom import XComModel
    from sqlalchemy import select
    from sqlalchemy.orm import object_session

    session = object_session(dag_run)
    if session is None or not (_source(dag_run) or _has_role(dag_run)):
        return
    query = select(XComModel.value).where(
        XComModel.dag_id == dag_run.dag_id, XComModel.run_id == dag_run.run_id, XComModel.key == XCOM_KEY
    )
    # Airflow's session has locked the row of the DAG run. It commits later, and refuses a savepoint here.
    new = session.scalar(query.limit(1))
    if isinstance(new, str):
        first = _first_title(dag_run)
        before = [line for line in (dag_run.note or "").splitlines() if line.rstrip() != first]
        dag_run.note = joined("\n".join(before), new)
