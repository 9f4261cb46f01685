"""Factories of DAGs: the releases of one model, a release as a task group, and the watch that starts releases.

A DAG file calls one of them: ``dag = release_dag("release_churn", bucket="models")``. The import of this module makes
no DAG. docs/own-dags.md has examples.
"""

from __future__ import annotations

from pathlib import Path

from airflow_onnx import installation

installation.check(Path(__file__).parent)

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, AssetWatcher, CronDataIntervalTimetable, Param, TaskGroup

from airflow_onnx import defaults, parameter_checks, retries
from airflow_onnx.dag_roles import DagRole
from airflow_onnx.deployment import placement as places
from airflow_onnx.deployment import settings
from airflow_onnx.errors import together
from airflow_onnx.events.notifications import Notifier, ReleaseEndCallback
from airflow_onnx.operators.start_releases import StartReleasesOperator
from airflow_onnx.params import json_param, json_params, text_param, text_params, with_defaults
from airflow_onnx.release_params import release_params
from airflow_onnx.release_tasks import ReleaseTasks
from airflow_onnx.triggers.mlflow_finished_runs import MlflowFinishedRunsTrigger
from airflow_onnx.watch.form import watch_params
from airflow_onnx.watch.routes import with_dag_id
from onnx_release.errors import ParameterRefused

TAGS = ("onnx", "mlflow", "release")
WAIT_TIMEOUT = timedelta(hours=24)
# Later tasks have the higher priority: releases are finished before new ones begin, and staging stays small.
_ORDER = {"weight_rule": "upstream"}
_RELEASE_TEXT = """Release of one finished training run as an ONNX model.

Trigger it with a training run id or a model URI, in the form of Airflow's UI or over the API. You can clear each task
and trigger a release again: the same artifact of one training run is registered as one model version.
"""
_WATCH_TEXT = """Start of one release for each finished training run in MLflow.

It runs after a training run has ended, at each interval of its schedule, and for each interval of a backfill. For old
runs, trigger it with a range of time. With *dry run* it only lists its decisions.
"""


def release_dag(
    dag_id: str,
    *,
    placement: Mapping[str, Any] | None = None,
    schedule: Any = None,
    outlets: Sequence[Any] = (),
    wait_timeout: timedelta = WAIT_TIMEOUT,
    on_released: Notifier | Sequence[Notifier] | None = None,
    on_refused: Notifier | Sequence[Notifier] | None = None,
    on_failed: Notifier | Sequence[Notifier] | None = None,
    dag_display_name: str = "",
    tags: Sequence[str] = TAGS,
    max_active_runs: int = defaults.RELEASES_ACTIVE_MAX,
    default_args: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> DAG:
    """Make the DAG that exports, tunes, checks, measures, uploads, registers and promotes the model of a training run.

    :param dag_id: the id of the DAG. Links, pages, plan and notes follow it.
    :param placement: as the option of the same name, for this DAG. Its fields precede those of the option.
    :param schedule: a schedule of Airflow, for a DAG with the parameter `model_uri`, such as ``models:/radio@new``.
    :param outlets: more assets that get an event when a version is promoted.
    :param wait_timeout: longest wait for the end of the training run.
    :param on_released: notifiers of Airflow, or functions of the context, for the end of a release with a version.
        They find a `ReleaseEnd` as ``release`` in the context: see docs/events.md. `on_refused` and `on_failed` are
        those for a model or a parameter at fault, and for a server or a program at fault.
    :param dag_display_name: the name in Airflow's UI. Empty: the id. `tags` are tags for its list of DAGs.
    :param max_active_runs: releases in progress. A waiting release takes no resources; the executor's slots and the
        pool for measurements limit the running tasks.
    :param default_args: arguments of each task, for example ``{"owner": "radio"}``.
    :param parameters: defaults of the parameters in docs/parameters.md: `model_name`, `bucket`, `prefix`, limits.
    :raises Refused: for a wrong argument. Airflow shows it as the import error of the DAG file.
    """
    form = _release_form(parameters)
    _require_source(dag_id, schedule, form)
    placed = places.places(placement)
    tasks = ReleaseTasks(
        dag_bucket=form["bucket"].value or "",
        places=placed,
        wait_timeout=wait_timeout,
        outlets=outlets,
        ended=ReleaseEndCallback(released=on_released, refused=on_refused, failed=on_failed),
    )
    with new_dag(
        dag_id, DagRole.RELEASE, _RELEASE_TEXT,
        dag_display_name=dag_display_name,
        params=form,
        tags=tags,
        schedule=schedule,
        # It runs only when it is triggered. A trigger of a paused DAG would wait without a message.
        is_paused_upon_creation=None if schedule else False,
        max_active_runs=max_active_runs,
        default_args={**_ORDER, **places.arguments(places.LIGHT, placed), **(default_args or {})},
    ) as dag:  # fmt: skip
        tasks.connect()
    return dag


def release_task_group(
    group_id: str = "release",
    *,
    training_run_id: Any = "",
    model_uri: Any = "",
    placement: Mapping[str, Any] | None = None,
    outlets: Sequence[Any] = (),
    wait_timeout: timedelta = WAIT_TIMEOUT,
    on_released: Notifier | Sequence[Notifier] | None = None,
    on_refused: Notifier | Sequence[Notifier] | None = None,
    on_failed: Notifier | Sequence[Notifier] | None = None,
    **parameters: Any,
) -> TaskGroup:
    """Make the tasks of one release as a task group of the current DAG.

    The ids of the tasks have no prefix, so a DAG has at most one such group. The DAG gets the parameters of a release
    that it does not have.

    :param group_id: the id of the group in Airflow's graph.
    :param training_run_id: the id of the training run, or the template or output of a task that returns it; likewise
        `model_uri`. Exactly one of both is needed. Empty: the parameter of the DAG run.
    :param parameters: as in `release_dag`, likewise `placement`, `outlets`, `wait_timeout`, `on_released`,
        `on_refused` and `on_failed`.
    """
    form = _release_form(parameters)
    placed = places.places(placement)
    given = {"training_run_id": training_run_id, "model_uri": model_uri}
    tasks = ReleaseTasks(
        # The DAG may have parameters of its own, which are unknown to a release.
        parameters="{%s}" % ", ".join(f'"{name}": {json_param(name)}' for name in form),  # noqa: UP031 - braces are Jinja's
        dag_bucket=form["bucket"].value or "",
        places=placed,
        wait_timeout=wait_timeout,
        outlets=outlets,
        ended=ReleaseEndCallback(released=on_released, refused=on_refused, failed=on_failed),
        **{name: source or text_param(name) for name, source in given.items()},
    )
    default_args: dict[str, Any] = {**_ORDER, **retries.arguments(), **places.arguments(places.LIGHT, placed)}
    # The type of this argument in Airflow 3.3 is that of a converter.
    with TaskGroup(group_id, prefix_group_id=False, default_args=default_args) as group:  # type: ignore[arg-type]
        dag: DAG = group.dag
        dag.tags.add(str(DagRole.RELEASE_TASKS))
        dag.params.update({name: field for name, field in form.items() if name not in dag.params})
        tasks.connect()
    return group


def watch_dag(
    dag_id: str,
    *,
    release_dag_id: str | None = None,
    routes: Sequence[Mapping[str, Any]] | None = None,
    cron: str | None = None,
    poll_s: float | None = None,
    dag_display_name: str = "",
    tags: Sequence[str] = TAGS,
    default_args: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> DAG:
    """Make the DAG that finds finished training runs in MLflow and starts the release of each.

    :param dag_id: the id of the DAG.
    :param release_dag_id: the DAG of each route that names none. Without any route it releases every watched run.
    :param routes: the release DAG of each experiment, with parameters: see docs/own-dags.md. None: the option
        `watch_routes`.
    :param cron: the schedule between asset events, and the interval of a backfill. None: the option `watch_cron`.
    :param poll_s: seconds between two polls of MLflow. None: the option `watch_poll_s`.
    :param dag_display_name: the name in Airflow's UI. Empty: the id. `tags` are tags for its list of DAGs.
    :param default_args: arguments of its task, for example ``{"owner": "radio"}``.
    :param parameters: defaults of the parameters in docs/parameters.md, such as `experiments` and `run_filter`.
    :raises Refused: for a wrong argument. Airflow shows it as the import error of the DAG file.
    """
    form = _watch_form(release_dag_id, routes, parameters)
    with new_dag(
        dag_id, DagRole.WATCH, _WATCH_TEXT,
        dag_display_name=dag_display_name,
        params=form,
        tags=tags,
        schedule=AssetOrTimeSchedule(
            assets=_finished_runs(dag_id, form, poll_s or settings.watch_poll_s()),
            timetable=CronDataIntervalTimetable(cron or settings.watch_cron(), timezone="UTC"),
        ),
        # A backfill may go back to this date, which is before any run.
        start_date=datetime(2018, 1, 1, tzinfo=UTC),
        default_args={
            **places.arguments(places.WATCH),
            # The next free slot of the executor is for it: its work takes a second, and starts all others.
            "priority_weight": defaults.WATCH_PRIORITY,
            **(default_args or {}),
        },
    ) as dag:  # fmt: skip
        StartReleasesOperator(
            task_id="start_releases",
            plan_only=json_param("dry_run"),
            **json_params("experiments", "routes", "lookback_h", "at_once"),
            **text_params("run_filter", "since", "until", "order", "mlflow_conn_id"),
        )
    return dag


def new_dag(
    dag_id: str,
    role: DagRole,
    text: str,
    *,
    dag_display_name: str,
    tags: Sequence[str],
    default_args: Mapping[str, Any],
    **arguments: Any,
) -> DAG:
    """Return a DAG with the arguments that all DAGs of this package have.

    :param text: its documentation. The first line is the short description.
    """
    return DAG(
        dag_id=dag_id,
        dag_display_name=dag_display_name or dag_id,
        description=text.splitlines()[0],
        doc_md=text,
        catchup=False,
        tags=[*tags, str(role)],
        default_args={**retries.arguments(), **default_args},
        **arguments,
    )


def _release_form(parameters: Mapping[str, Any]) -> dict[str, Param]:
    """Return the form of a release with the given defaults, which are checked as at the begin of a release."""
    form = with_defaults(release_params(), parameters)
    given = {name: form[name].value for name, value in parameters.items() if value is not None}
    if wrong := parameter_checks.problems(given):
        raise together("The check of the parameters", wrong)
    return form


def _require_source(dag_id: str, schedule: Any, form: Mapping[str, Param]) -> None:
    """Refuse a schedule without a model: each of its DAG runs would fail."""
    if schedule is not None and not form["model_uri"].value:
        raise ParameterRefused(
            f"The DAG '{dag_id}'",
            "has a schedule and no model to release",
            "Set model_uri, such as models:/NAME@ALIAS. To release each training run use watch_dag.",
            code="missing_value",
        )


def _watch_form(
    release_dag_id: str | None, routes: Sequence[Mapping[str, Any]] | None, parameters: Mapping[str, Any]
) -> dict[str, Param]:
    configured = settings.watch_routes() if routes is None else list(routes)
    default = with_dag_id(configured or ([{"experiment": "*"}] if release_dag_id else []), release_dag_id)
    if not default:
        action = "Set release_dag_id, routes, or the option [onnx_release] watch_routes."
        raise ParameterRefused("The watch", "has no release DAG", action, code="missing_value")
    form = with_defaults(watch_params(default), {"routes": default, **parameters})
    # With routes, the experiments that they match are watched unless others are set.
    if configured and not form["experiments"].value:
        patterns = [route["experiment"] for route in default]
        form = with_defaults(form, {"experiments": patterns})
    return form


def _finished_runs(dag_id: str, form: Mapping[str, Param], poll_s: float) -> Asset:
    """Return the asset that gets an event when a training run has ended."""
    # The asset has a name and no URI: for a URI, Airflow imports the asset code of all providers, with boto3.
    name = f"finished_training_runs.{dag_id}"
    if not form["experiments"].value:
        return Asset(name=name)
    trigger = MlflowFinishedRunsTrigger(
        experiments=form["experiments"].value,
        routed=[route["experiment"] for route in form["routes"].value],
        run_filter=form["run_filter"].value or "",
        mlflow_conn_id=form["mlflow_conn_id"].value,
        lookback_h=form["lookback_h"].value,
        poll_interval_s=poll_s,
    )
    return Asset(name=name, watchers=[AssetWatcher(name="mlflow", trigger=trigger)])
