"""Finds finished training runs in MLflow and starts one release for each, however it is asked.

It runs when the bell rings (a training run has ended), at each interval of its schedule (for what the bell missed), for
each interval of a backfill, and by hand: with a range of time for old runs, and with *dry run* to see a plan first.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG, Asset, AssetOrTimeSchedule, AssetWatcher, CronDataIntervalTimetable

from airflow_onnx import defaults
from airflow_onnx.deployment import settings
from airflow_onnx.operators.start_releases import StartReleasesOperator
from airflow_onnx.params import field, json_param, text_param
from airflow_onnx.triggers.mlflow_finished_runs import MlflowFinishedRunsTrigger

EXPERIMENTS, CONN_ID = settings.watch_experiments(), "mlflow_default"
# The sections of the trigger form, in its order. Airflow's form opens the one of this name, and only that one.
WHICH, HOW = "Run Parameters", "How"


PARAMS = {
    "dry_run": field(
        False, "boolean", WHICH, "Dry run",
        "Start nothing: list what would be done with each run, and how long it takes.",
    ),
    "since": field(
        None, "string", WHICH, "Ended since",
        "For old runs: those that ended from here on. Empty: what is new within the lookback.", format="date-time",
    ),
    "until": field(
        None, "string", WHICH, "Ended before", "The end of that range, left out of it. Empty: now.", format="date-time"
    ),
    "experiments": field(
        EXPERIMENTS, "array", WHICH, "Experiments", "Names or ids; `*` for all. The deployment's own: "
        "`[onnx_release] watch_experiments`.", items={"type": "string", "minLength": 1},
    ),
    "run_filter": field(
        settings.watch_filter() or None, "string", WHICH, "Filter",
        "More conditions in MLflow's filter language, for example `metrics.val_mae < 0.2` or `tags.team = 'radio'`.",
    ),
    "lookback_h": field(
        defaults.WATCH_LOOKBACK_H, "number", WHICH, "Lookback (hours)",
        "How far back new runs are looked for: late ones, and those of a wrong clock.",
        exclusiveMinimum=0, maximum=24 * 366,
    ),
    "order": field(
        "oldest", "string", HOW, "Order", "Of the runs of a range.", enum=["oldest", "newest"]
    ),
    "at_once": field(
        defaults.RELEASES_AT_ONCE, "integer", HOW, "Releases at once",
        "Of the runs of a range; each interval of a backfill has this many. None is started while the release of a new "
        "run goes on.", minimum=1, maximum=defaults.RELEASES_AT_ONCE_MAX,
    ),
    "model_name": field(
        defaults.MODEL_NAME, "string", HOW, "Registered model",
        "For runs that name none: a run's tag `onnx_release.model_name` comes first, then its experiment's.",
        pattern=defaults.MODEL_NAME_PATTERN,
    ),
    "release_params": field(
        settings.watch_release_params(), "object", HOW, "Parameters of the releases",
        'Given to each release as they stand, for example `{"on_miss": "warn", "alias": "backfilled"}`. '
        "The deployment's own: `[onnx_release] watch_release_params`.",
    ),
    "mlflow_conn_id": field(CONN_ID, "string", HOW, "MLflow connection", "Of type `mlflow`.", minLength=1),
}  # fmt: skip

# A name and no address: for an address Airflow loads what every provider knows of such, boto3 among it, at each parse.
FINISHED_RUNS = Asset(
    name="finished_training_runs",
    watchers=[
        AssetWatcher(
            name="mlflow",
            trigger=MlflowFinishedRunsTrigger(
                experiments=EXPERIMENTS,
                run_filter=settings.watch_filter(),
                mlflow_conn_id=CONN_ID,
                lookback_h=defaults.WATCH_LOOKBACK_H,
                poll_interval_s=settings.watch_poll_s(),
            ),
        )
    ]
    # Without an experiment there is nothing to poll for.
    if EXPERIMENTS
    else [],
)

with DAG(
    dag_id="watch_training",
    dag_display_name="Watch for finished training runs",
    description=__doc__.splitlines()[0],
    doc_md=__doc__,
    schedule=AssetOrTimeSchedule(
        assets=FINISHED_RUNS, timetable=CronDataIntervalTimetable(settings.watch_cron(), timezone="UTC")
    ),
    # Older than any run: a backfill may go back to here.
    start_date=datetime(2018, 1, 1, tzinfo=UTC),
    catchup=False,
    params=PARAMS,
    tags=["onnx", "mlflow", "release"],
    default_args={
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=5),
    },
):
    StartReleasesOperator(
        task_id="start_releases",
        plan_only=json_param("dry_run"),
        **{name: json_param(name) for name in ("experiments", "release_params", "lookback_h", "at_once")},
        **{
            name: text_param(name) for name in ("run_filter", "model_name", "since", "until", "order", "mlflow_conn_id")
        },
    )
