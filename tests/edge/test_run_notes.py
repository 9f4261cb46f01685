"""Notes of DAG runs: a person's text stays, and the listener writes the result into Airflow's database."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from airflow_onnx import run_notes

ROOT = Path(__file__).parents[2]
TITLE = run_notes.title("small", "a" * 32, "radio-onnx")
SCRIPT = """
from datetime import UTC, datetime
from airflow import settings
from airflow.models import import_all_models, team
from airflow.models.base import Base
from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from airflow.utils.sqlalchemy import prohibit_commit
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunType
from sqlalchemy import select, text

settings.initialize()
import_all_models()
Base.metadata.create_all(settings.engine)
now = datetime.now(UTC)
with create_session() as session:
    session.execute(text("PRAGMA foreign_keys=OFF"))
    for run_id, conf in (("a", {"training_run_id": "x", "model_name": "net"}), ("b", {"other": 1})):
        run = DagRun(dag_id="release_onnx", run_id=run_id, run_after=now, conf=conf, run_type=DagRunType.MANUAL)
        session.add(run)
        session.flush()
        session.add(XComModel(
            dag_run_id=run.id, task_id="clean_work", map_index=-1, key="onnx_release_note", dag_id="release_onnx",
            run_id=run_id, value="small → m\\n✖ Refused: y is NaN.", timestamp=now,
        ))
for state, note in ((DagRunState.RUNNING, None), (DagRunState.FAILED, "by anna"), (DagRunState.SUCCESS, None)):
    # The scheduler forbids any commit but its own.
    with create_session() as session, prohibit_commit(session) as guard:
        for run in session.scalars(select(DagRun)):
            if note:
                started = run.note
                run.note = f"{started}\\n{note}" if started else note
                print(started)
            run.set_state(state)
            run.notify_dagrun_state_changed(msg="test")
        guard.commit()
with create_session() as session:
    print(sorted((run.run_id, run.note) for run in session.scalars(select(DagRun))))
"""


def test_a_title_names_run_and_model_and_is_one_line() -> None:
    assert TITLE == "small → radio-onnx"
    assert run_notes.title(None, "a" * 32, None) == "a" * 32
    assert "<" not in run_notes.title("<script>\n# x", "a" * 32, "m")
    assert "\n" not in run_notes.title("<script>\n# x", "a" * 32, "m")
    assert run_notes.title("a\x00b\u202e\ud800", "a" * 32, "m") == "a b → m"


def test_a_result_replaces_an_earlier_one_and_a_persons_text_stays() -> None:
    refused, released = (
        f"{TITLE}\n{run_notes.result(text)}" for text in ("Refused: y is NaN.", "Released with a warning: speed.")
    )
    note = run_notes.joined("for the field test", refused)
    assert note == "for the field test  \nsmall → radio-onnx  \n✖ Refused: y is NaN."
    assert run_notes.joined(note, refused) == note
    assert run_notes.joined(note, released) == note.replace("✖ Refused: y is NaN.", "▲ Released with a warning: speed.")
    assert run_notes.joined(TITLE, released) == f"{TITLE}  \n▲ Released with a warning: speed."
    assert run_notes.joined("x" * 999, released) == "x" * 999


def test_the_listener_writes_the_note_of_a_release_alone(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {
        "AIRFLOW_HOME": str(tmp_path),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path / 'airflow.db'}",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "include", ROOT / "plugins"))),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-3:-1] == ["x → net", "None"], done.stdout[-2000:]
    expected = [("a", "by anna  \nsmall → m  \n✖ Refused: y is NaN."), ("b", "by anna")]
    assert done.stdout.splitlines()[-1] == str(expected), done.stdout[-2000:] + done.stderr[-2000:]
