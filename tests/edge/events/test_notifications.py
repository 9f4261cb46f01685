"""Notifiers and metrics at the end of a release: each way to end, hostile names, and broken backends."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import BaseNotifier
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from airflow.sdk.observability import stats

from airflow_onnx.dag import release_dag
from airflow_onnx.events.figures import Figures
from airflow_onnx.events.notifications import ReleaseEndCallback
from airflow_onnx.events.release_end import SUMMARY_KEY, ReleaseEnd, Summary
from airflow_onnx.task_outcome import XCOM_KEY, TaskOutcome
from onnx_release.records import ModelVersion, TrainedModel

RUN = "r" * 32
TRAINED = TrainedModel(training_run_id=RUN, model_uri="models:/m-1", run_name="run-7", experiment_id="3")
VERSION = ModelVersion(
    name="radio-onnx", version=5, sha256="ab" * 32, source="s3://m/x", training_run_id=RUN, alias="candidate"
)
RELEASED = Summary(headline="Released: fp32.", figures=Figures(speedup=2.0, speedup_low=1.9, batch_size=1))
REFUSED = TaskOutcome(
    status="refused", reason="Model m has NaN. Train again.", code="nan_weights", headline="Refused: model m has NaN.",
    next_step="Train again.",
)  # fmt: skip


def context_of(xcoms: dict[tuple[str, str], Any], states: dict[str, str] | None = None, **conf: Any) -> dict[str, Any]:
    """Return the context of the teardown, with the XComs by task and key."""
    rows = [
        {"task_id": "wait_for_training", "operator": "MlflowTrainingRunSensor", "duration": 900.0},
        {"task_id": "export", "operator": "OnnxExportOperator", "duration": 12.5},
        {"task_id": "tune", "operator": "OnnxTuneOperator", "duration": None},
    ]
    ti = SimpleNamespace(
        task_id="clean_work",
        xcom_pull=lambda task_ids, key: xcoms.get((task_ids, key)),
        get_task_states=lambda dag_id, run_ids: {run_ids[0]: states or {}},
        get_task_breadcrumbs=lambda dag_id, run_id: rows,
    )
    run = SimpleNamespace(dag_id="release_onnx", run_id="manual__1", conf={"training_run_id": RUN, **conf})
    return {"ti": ti, "dag_run": run, "dag": release_dag("release_onnx")}


def released(**changes: Any) -> dict[str, Any]:
    return context_of({
        ("wait_for_training", "return_value"): TRAINED.replace(**changes).to_dict(),
        ("promote", "return_value"): VERSION.to_dict(),
        ("promote", SUMMARY_KEY): RELEASED.to_dict(),
    })  # fmt: skip


def refused() -> dict[str, Any]:
    return context_of(
        {("wait_for_training", "return_value"): TRAINED.to_dict(), ("check", XCOM_KEY): REFUSED.to_dict()},
        {"check": "failed", "upload": "upstream_failed"},
    )


KILLED = {"export": "failed", "check": "upstream_failed"}


class Kept(BaseNotifier):
    """A notifier with a template. It keeps the rendered texts."""

    template_fields = ("text",)
    texts: list[str]

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.texts = text, []

    def notify(self, context: Any) -> None:
        self.texts.append(self.text)


class Backend:
    """A backend of Airflow's metrics that keeps them, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.sent = error, {}

    def _keep(self, stat: str, *value: Any, tags: dict[str, str] | None = None, **_: Any) -> None:
        if self.error:
            raise self.error
        self.sent[stat] = (value[0] if value else 1, tags)

    incr = gauge = timing = _keep


@pytest.fixture(autouse=True)
def mlflow_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", "mlflow://https%3A%2F%2Fmlflow.test")


@pytest.fixture
def backend() -> Iterator[Backend]:
    made = Backend()
    stats.initialize(factory=lambda: made, export_legacy_names=True)
    yield made
    stats.initialize(factory=NoStatsLogger, export_legacy_names=True)


def end_of(context: dict[str, Any]) -> ReleaseEnd:
    """Return the one end that the notifiers of all three statuses get."""
    ends: list[tuple[str, ReleaseEnd]] = []
    keep = {
        status: (lambda found, status=status: ends.append((status, found["release"])))
        for status in ("released", "refused", "failed")
    }
    ReleaseEndCallback(**keep)(context)
    [(status, end)] = ends
    assert status == end.status
    return end


def test_a_released_version_has_its_name_figures_and_links() -> None:
    end = end_of(released())
    assert (end.status, end.headline, end.model_name, end.version) == ("released", "Released: fp32.", "radio-onnx", 5)
    assert (end.alias, end.run_name, end.figures.speedup, end.code, end.task) == ("candidate", "run-7", 2.0, "", "")
    assert end.version_url == "https://mlflow.test/#/models/radio-onnx/versions/5"
    assert end.training_run_url == f"https://mlflow.test/#/experiments/3/runs/{RUN}"
    assert end.dag_run_url.endswith("/dags/release_onnx/runs/manual__1")
    assert RUN in end.rerun_url


def test_a_release_is_released_if_only_its_teardown_failed() -> None:
    context = released()
    context["ti"].get_task_states = lambda dag_id, run_ids: {run_ids[0]: {"clean_work": "failed"}}
    assert end_of(context).status == "released"


def test_a_refusal_has_the_sentences_of_its_report_or_else_of_its_error() -> None:
    end = end_of(refused())
    assert (end.status, end.code, end.task, end.version) == ("refused", "nan_weights", "check", None)
    assert (end.headline, end.next_step) == ("Refused: model m has NaN.", "Train again.")
    context = refused()
    pull = context["ti"].xcom_pull
    report = Summary(headline="Refused: 2 limits.", next_step="Look.").to_dict()
    context["ti"].xcom_pull = lambda task_ids, key: report if key == SUMMARY_KEY else pull(task_ids, key)
    assert (end_of(context).headline, end_of(context).next_step) == ("Refused: 2 limits.", "Look.")


@pytest.mark.parametrize(("states", "words"), [(KILLED, "'export' failed without a message"), ({}, "a person marked")])
def test_a_killed_task_and_a_marked_dag_run_are_failures(states: dict[str, str], words: str) -> None:
    end = end_of(context_of({}, states))
    assert end.status == "failed"
    assert words in end.headline
    assert (end.training_run_id, end.training_run_url) == ("", "")


def test_a_missing_connection_leaves_out_the_links_to_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", "mlflow://")
    end = end_of(released())
    assert (end.status, end.version_url) == ("released", "")


def test_each_notifier_is_called_with_its_own_templates_and_errors_stay_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(context: Any) -> None:
        raise RuntimeError("the chat is down")

    kept = Kept("{{ release.headline }} {{ release.version }} {{ dag_run.run_id }}")
    wrong = Kept("{{ 1 / 0 }}")
    callback = ReleaseEndCallback(released=[broken, wrong, kept, kept], failed=broken)
    callback(released())
    callback(context_of({("wait_for_training", "return_value"): {"unknown": 1}}))
    callback(released())
    assert kept.texts == ["Released: fp32. 5 manual__1"] * 4
    assert wrong.texts == []
    assert kept.text.startswith("{{"), "the notifier keeps its template"
    assert "the chat is down" in caplog.text
    assert "cannot be read" in caplog.text


def test_a_hostile_name_is_one_line_and_is_not_a_template() -> None:
    name = "<script>\n{{ 7*7 }}\r\nBcc: all\u202e<!channel>" + "x" * 2000
    plain, mail = Kept("{{ release.run_name }}"), Kept("<p>{{ release.run_name | e }}</p>")
    ReleaseEndCallback(released=[plain, mail])(released(run_name=name))
    assert plain.texts[0].startswith("<script> {{ 7*7 }} Bcc: all <!channel>xxx")
    assert len(plain.texts[0]) <= 500
    assert "<script>" not in mail.texts[0]
    assert "&lt;!channel&gt;" in mail.texts[0]


def test_metrics_have_tags_and_a_name_for_servers_without_tags(backend: Backend) -> None:
    ReleaseEndCallback()(released())
    tags = {"model_name": "radio-onnx"}
    assert backend.sent["onnx_release.released"] == (1, tags)
    assert backend.sent["onnx_release.released.radio-onnx"] == (1, None)
    assert backend.sent["onnx_release.speedup"] == (2.0, tags | {"batch_size": "1"})
    assert backend.sent["onnx_release.step.export"][0].total_seconds() == 12.5
    assert backend.sent["onnx_release.wall"][0].total_seconds() == 12.5, "without the wait for the training"
    assert "onnx_release.step.wait_for_training" not in backend.sent
    backend.sent.clear()
    ReleaseEndCallback()(refused())
    assert backend.sent["onnx_release.refused"][1] == {"model_name": "unknown", "code": "nan_weights"}
    assert "onnx_release.refused.nan_weights" in backend.sent
    ReleaseEndCallback()(context_of({}, KILLED))
    assert backend.sent["onnx_release.failed"][1] == {"model_name": "unknown", "task_id": "export"}


def test_a_broken_backend_and_missing_durations_change_nothing(backend: Backend) -> None:
    backend.error = OSError("no route to the metrics")
    context, called = released(), []
    del context["ti"].get_task_breadcrumbs
    ReleaseEndCallback(released=called.append)(context)
    assert len(called) == 1
