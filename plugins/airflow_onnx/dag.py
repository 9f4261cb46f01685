"""Factories of the two DAGs: the release of one training run, and the watch that starts releases.

A DAG file calls one of them: ``dag = release_dag()``. The import of this module makes no DAG.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, AssetWatcher, CronDataIntervalTimetable, Param, TriggerRule

from airflow_onnx import defaults
from airflow_onnx.dag_runs import RELEASE_DAG_ID
from airflow_onnx.deployment import placement, settings
from airflow_onnx.events.model_assets import RELEASED_VERSIONS
from airflow_onnx.events.notifications import Notifier, ReleaseEndCallback
from airflow_onnx.operators.approve import OnnxApproveVersionOperator
from airflow_onnx.operators.check import OnnxCheckOperator
from airflow_onnx.operators.export import OnnxExportOperator
from airflow_onnx.operators.parity_latency import OnnxParityLatencyOperator
from airflow_onnx.operators.promote import MlflowPromoteModelOperator
from airflow_onnx.operators.register import MlflowRegisterOnnxOperator
from airflow_onnx.operators.start_releases import StartReleasesOperator
from airflow_onnx.operators.tune import OnnxTuneOperator
from airflow_onnx.operators.upload import TARGET_KEY, OnnxUploadToS3Operator
from airflow_onnx.operators.work_folder import CleanWorkFolderOperator, PrepareWorkFolderOperator
from airflow_onnx.params import field, json_param, task_record, task_text, text_param
from airflow_onnx.release_params import release_params
from airflow_onnx.sensors.mlflow_run import MlflowTrainingRunSensor
from airflow_onnx.triggers.mlflow_finished_runs import MlflowFinishedRunsTrigger
from onnx_release import limits

WATCH_DAG_ID = "watch_training"
TAGS = ("onnx", "mlflow", "release")
_RELEASE_TEXT = """Release of one finished training run as an ONNX model.

Trigger it with a training run id or a model URI, in the form of Airflow's UI or over the API. You can clear each task
and trigger a release again: the same artifact of one training run is registered as one model version.
"""
_WATCH_TEXT = """Start of one release for each finished training run in MLflow.

It runs after a training run has ended, at each interval of its schedule, and for each interval of a backfill. For old
runs, trigger it with a range of time. With *dry run* it only lists its decisions.
"""
# A failed task is retried for some minutes. Airflow never repeats a refusal, regardless of these values.
RETRIES: dict[str, Any] = {
    "retries": 3,
    "retry_delay": timedelta(seconds=10),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=5),
}
# The teardown records failures on the training run, so it outlasts an outage of MLflow of about an hour. An approval
# is also repeated when a person answers in its first seconds: the answer must not be the end of the release.
MANY_RETRIES: dict[str, Any] = {"retries": 15}
# The watch's form also opens only the section with the first name: see `release_params`.
_RUNS, _MORE = "Run Parameters", "Experts: the search and the releases"
_CONN_ID = "mlflow_default"


def release_dag(
    dag_id: str = RELEASE_DAG_ID,
    *,
    dag_display_name: str = "Release a training run as ONNX",
    tags: Sequence[str] = TAGS,
    max_active_runs: int = defaults.RELEASES_ACTIVE_MAX,
    wait_timeout: timedelta = timedelta(hours=24),
    on_released: Notifier | Sequence[Notifier] | None = None,
    on_refused: Notifier | Sequence[Notifier] | None = None,
    on_failed: Notifier | Sequence[Notifier] | None = None,
) -> DAG:
    """Make the DAG that exports, tunes, checks, measures, uploads, registers and promotes the model of a training run.

    :param dag_id: id of the DAG. `watch_training` and the trigger page use the DAG with the default id.
    :param max_active_runs: releases in progress. A waiting release takes no resources; the executor's slots and the
        pool for measurements limit the running tasks.
    :param wait_timeout: longest wait for the end of the training run.
    :param on_released: notifiers of Airflow, or functions of the context, for the end of a release with a version.
        They find a `ReleaseEnd` as ``release`` in the context: see docs/events.md. `on_refused` and `on_failed` are
        those for a model or a parameter at fault, and for a server or a program at fault.
    """
    ended = ReleaseEndCallback(released=on_released, refused=on_refused, failed=on_failed)
    with DAG(
        dag_id=dag_id,
        dag_display_name=dag_display_name,
        description=_RELEASE_TEXT.splitlines()[0],
        doc_md=_RELEASE_TEXT,
        schedule=None,
        # It runs only when it is triggered. A trigger of a paused DAG would wait without a message.
        is_paused_upon_creation=False,
        catchup=False,
        params=release_params(),
        tags=list(tags),
        max_active_runs=max_active_runs,
        # Later tasks have the higher priority: releases are finished before new ones begin, and staging stays small.
        default_args={"weight_rule": "upstream", **RETRIES, **placement.arguments("light")},
    ) as dag:
        server = {"mlflow_conn_id": text_param("mlflow_conn_id")}
        wait = MlflowTrainingRunSensor(
            task_id="wait_for_training",
            training_run_id=text_param("training_run_id"),
            model_uri=text_param("model_uri"),
            model_name=text_param("model_name"),
            parameters="{{ params | tojson }}",
            logged_model_name=text_param("logged_model_name"),
            poke_interval=5,
            timeout=wait_timeout.total_seconds(),
            deferrable=True,
            **server,
        )
        step: dict[str, Any] = {**server, "trained_model": task_record("wait_for_training")}
        prepare = PrepareWorkFolderOperator(
            task_id="prepare_work",
            bucket=text_param("bucket"),
            files={"inputs_uri": text_param("inputs_uri"), "evaluation_uri": _evaluation_uri()},
            s3_conn_id=text_param("s3_conn_id"),
            **step,
        ).as_setup()
        tasks = [wait, prepare, *_model_tasks(step), *_publishing_tasks(step, prepare, ended)]
        for task, following in pairwise(tasks):
            task >> following
    return dag


def watch_dag(
    dag_id: str = WATCH_DAG_ID,
    *,
    dag_display_name: str = "Watch for finished training runs",
    tags: Sequence[str] = TAGS,
) -> DAG:
    """Make the DAG that finds finished training runs in MLflow and starts a DAG run of `release_onnx` for each.

    The options `watch_*` of `[onnx_release]` set the experiments, the filter and the schedule.
    """
    with DAG(
        dag_id=dag_id,
        dag_display_name=dag_display_name,
        description=_WATCH_TEXT.splitlines()[0],
        doc_md=_WATCH_TEXT,
        schedule=AssetOrTimeSchedule(
            assets=_finished_runs(), timetable=CronDataIntervalTimetable(settings.watch_cron(), timezone="UTC")
        ),
        # A backfill may go back to this date, which is before any run.
        start_date=datetime(2018, 1, 1, tzinfo=UTC),
        catchup=False,
        params=_watch_params(),
        tags=list(tags),
        default_args=dict(RETRIES),
    ) as dag:
        texts = ("run_filter", "model_name", "since", "until", "order", "mlflow_conn_id")
        StartReleasesOperator(
            task_id="start_releases",
            plan_only=json_param("dry_run"),
            **{name: json_param(name) for name in ("experiments", "release_params", "lookback_h", "at_once")},
            **{name: text_param(name) for name in texts},
        )
    return dag


def _model_tasks(step: dict[str, Any]) -> list[Any]:
    """Return the tasks that make the candidate and compare it with the reference."""
    source = {name: text_param(name) for name in ("factory", "weights_key")}
    source |= {name: json_param(name) for name in ("factory_kwargs", "input_spec")}
    measuring = _measuring_arguments(source)
    candidate = task_record("tune", otherwise="export")
    export = OnnxExportOperator(
        task_id="export",
        work_uri=task_text("prepare_work"),
        opset=json_param("opset"),
        device=text_param("device"),
        model_source=source,
        optional_tasks={"tune": json_param("tune")},
        **placement.arguments("export"),
        **step,
    )
    tune = OnnxTuneOperator(
        task_id="tune",
        # Without tuning Airflow shows this task as skipped. Running it as a pass-through would cost each release a
        # process, and a wait for the measuring slot.
        task_display_name="tune (on request)",
        artifact=task_record("export"),
        work_uri=task_text("prepare_work"),
        enabled=json_param("tune"),
        precisions=json_param("tune_precisions"),
        max_s=json_param("tune_max_s"),
        evaluation_uri=text_param("evaluation_uri"),
        metric_loss_max=json_param("metric_loss_max"),
        allowed_domains=json_param("allowed_domains"),
        opset=json_param("opset"),
        alias=text_param("alias"),
        stage=text_param("stage"),
        **measuring,
        **step,
    )
    check = OnnxCheckOperator(
        task_id="check",
        artifact=candidate,
        allowed_domains=json_param("allowed_domains"),
        policy=_policy(),
        stage=text_param("stage"),
        rules=_move_rules(),
        s3_conn_id=text_param("s3_conn_id"),
        # The task `tune` is skipped unless the parameter `tune` is true.
        trigger_rule=TriggerRule.NONE_FAILED,
        **step,
    )
    parity_latency = OnnxParityLatencyOperator(
        task_id="parity_latency",
        artifact=candidate,
        check=task_record("check"),
        policy=_policy(),
        rules=_move_rules(),
        margins={"margin": json_param("champion_margin"), "metric_loss_max": json_param("metric_loss_max")},
        evaluation_uri=text_param("evaluation_uri"),
        **measuring,
        **step,
    )
    return [export, tune, check, parity_latency]


def _measuring_arguments(source: dict[str, Any]) -> dict[str, Any]:
    """Return the common arguments of the tasks that compare and time models."""
    return {
        "batch_sizes": json_param("batch_sizes"),
        "parity": {name: json_param(name) for name in limits.ParityLimits.model_fields},
        "precision_limits": json_param("precision_limits"),
        "budget": {
            "batch_size": json_param("serving_batch_size"),
            **{name: json_param(name) for name in ("speedup_min", "speedup_goal", "p95_max_ms", "on_miss")},
        },
        "plan": {name: json_param(name) for name in ("threads", "measure_max_s")},
        "model_source": source,
        "inputs_uri": text_param("inputs_uri"),
        "s3_conn_id": text_param("s3_conn_id"),
        # The pool has one slot per measuring host: two measurements at the same time would disturb each other.
        **placement.arguments("measure"),
    }


def _evaluation_uri() -> str:
    """Return the template of the evaluation sample, which only the tuning and the comparison with a champion use."""
    return "{{ params.evaluation_uri or '' if params.tune or params.promotion != 'candidate' else '' }}"


def _policy() -> dict[str, str]:
    """Return the fields of `PromotionPolicy`."""
    return {name: text_param(name) for name in ("promotion", "alias", "champion_alias")}


def _move_rules() -> dict[str, str]:
    """Return the fields of `MoveRules`."""
    return {"contract_change": text_param("contract_change"), "alias_back": json_param("alias_back")}


def _publishing_tasks(step: dict[str, Any], prepare: Any, ended: ReleaseEndCallback) -> list[Any]:
    """Return the tasks that store, register and promote the candidate, and the teardown of the work folder.

    :param ended: the callback for the end of the teardown, which is the end of the DAG run.
    """
    artifact = task_record("tune", otherwise="export")
    store = {"s3_conn_id": text_param("s3_conn_id")}
    results = {"artifact": artifact, "check": task_record("check"), "benchmark": task_record("parity_latency")}
    upload = OnnxUploadToS3Operator(task_id="upload", bucket=text_param("bucket"), **results, **step, **store)
    register = MlflowRegisterOnnxOperator(
        task_id="register",
        artifact=artifact,
        uploaded=task_record("upload"),
        policy=_policy(),
        approval_task="approve",
        **step,
        **store,
    )
    approve = OnnxApproveVersionOperator(
        task_id="approve",
        task_display_name="approve (on request)",
        version=task_record("register"),
        policy=_policy(),
        rules=_move_rules(),
        timeout_h=json_param("approval_timeout_h"),
        **MANY_RETRIES,
        **results,
        **step,
        **store,
    )
    promote = MlflowPromoteModelOperator(
        task_id="promote",
        uploaded=task_record("upload"),
        version=task_record("register"),
        given=task_record("approve"),
        policy=_policy(),
        outlets=[RELEASED_VERSIONS],
        stage=text_param("stage"),
        rules=_move_rules(),
        # One promotion at a time needs no wait for the lock of its model, and a slow MLflow cannot mix two.
        max_active_tis_per_dag=1,
        # The task `approve` is skipped unless a move needs an approval.
        trigger_rule=TriggerRule.NONE_FAILED,
        **results,
        **step,
        **store,
    )
    clean = CleanWorkFolderOperator(
        task_id="clean_work",
        work_uri=task_text("prepare_work"),
        training_run_id=text_param("training_run_id"),
        model_uri=text_param("model_uri"),
        target_uri=task_text("upload", TARGET_KEY),
        version=task_record("promote"),
        on_success_callback=ended,
        on_failure_callback=ended,
        **step,
        **store,
        **MANY_RETRIES,
    ).as_teardown(setups=prepare)
    # Not `ALL_DONE_SETUP_SUCCESS`: a failure of the sensor or of the setup is recorded too.
    clean.trigger_rule = TriggerRule.ALL_DONE
    return [upload, register, approve, promote, clean]


def _finished_runs() -> Asset:
    """Return the asset that gets an event when a training run has ended."""
    # The asset has a name and no URI: for a URI, Airflow imports the asset code of all providers, with boto3.
    name = "finished_training_runs"
    experiments = settings.watch_experiments()
    if not experiments:
        return Asset(name=name)
    trigger = MlflowFinishedRunsTrigger(
        experiments=experiments,
        run_filter=settings.watch_filter(),
        mlflow_conn_id=_CONN_ID,
        lookback_h=defaults.WATCH_LOOKBACK_H,
        poll_interval_s=settings.watch_poll_s(),
    )
    return Asset(name=name, watchers=[AssetWatcher(name="mlflow", trigger=trigger)])


def _watch_params() -> dict[str, Param]:
    return {
        "dry_run": field(
            False, "boolean", _RUNS, "Dry run",
            "Start nothing. List the decision about each run, and the estimated duration.",
        ),
        "since": field(
            None, "string", _RUNS, "Ended since",
            "For old runs: those that ended at this time or later. Empty: new runs within the lookback.",
            format="date-time",
        ),
        "until": field(
            None, "string", _RUNS, "Ended before", "The end of that range, exclusive. Empty: now.", format="date-time"
        ),
        "experiments": field(
            settings.watch_experiments(), "array", _RUNS, "Experiments",
            "Names or ids, one a line; * for all. The option [onnx_release] watch_experiments sets the default.",
            may_be_empty=True, items={"type": "string", "minLength": 1},
        ),
        "run_filter": field(
            settings.watch_filter() or None, "string", _RUNS, "Filter",
            "More conditions in MLflow's filter language, for example metrics.val_mae < 0.2 or tags.team = 'radio'.",
            may_be_empty=True,
        ),
        "lookback_h": field(
            defaults.WATCH_LOOKBACK_H, "number", _MORE, "Lookback (hours)",
            "The search for new runs goes back this far. It finds runs that were reported late or by a wrong clock.",
            exclusiveMinimum=0, maximum=24 * 366,
        ),
        "order": field(
            "oldest", "string", _MORE, "Order", "The runs of a range that come first.", enum=["oldest", "newest"]
        ),
        "at_once": field(
            defaults.RELEASES_AT_ONCE, "integer", _MORE, "Releases at the same time",
            "For the runs of a range. Each interval of a backfill has this many. While a new run is released, none of "
            "these starts.", minimum=1, maximum=defaults.RELEASES_AT_ONCE_MAX,
        ),
        "model_name": field(
            None, "string", _MORE, "Registered model",
            "For runs without the tag onnx_release.model_name on the run or its experiment. Empty: EXPERIMENT-MODEL.",
            pattern=defaults.MODEL_NAME,
        ),
        "release_params": field(
            settings.watch_release_params(), "object", _MORE, "Parameters of the releases",
            'The same for each release, for example {"on_miss": "warn", "alias": "backfilled"}. '
            "The option [onnx_release] watch_release_params sets the default.",
            may_be_empty=True,
        ),
        "mlflow_conn_id": field(_CONN_ID, "string", _MORE, "MLflow connection", "Of type mlflow.", minLength=1),
    }  # fmt: skip
