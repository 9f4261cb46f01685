"""Options of Airflow's section `[onnx_release]`: one table for their readers, for Airflow and for docs/options.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from airflow_onnx import defaults
from onnx_release import limits

Kind = Literal["string", "boolean", "integer", "float"]
SECTION = "onnx_release"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option.

    :param help: one sentence or two.
    :param default: the value as text; None for one that depends on the host, which `default_words` describes.
    :param argument: the argument of a factory, or the parameter of a DAG run, that precedes the option. Empty: none.
    """

    help: str
    default: str | None = ""
    example: str | None = None
    kind: Kind = "string"
    default_words: str = ""
    argument: str = ""


OPTIONS: Mapping[str, Option] = {
    "bucket": Option(
        help="Bucket of the released artifacts. It must exist.", example="models", argument="bucket",
        default_words="none: a release without a bucket is refused",
    ),
    "prefix": Option(
        help="Folder in the bucket for the released artifacts, for a bucket that others use too.",
        example="teams/radio", argument="prefix", default_words="the root of the bucket",
    ),
    "release_buckets": Option(
        help="More buckets that a release, a move of an alias, a garbage collection and a retirement may use. A bucket "
        "that a DAG file names is allowed for this DAG.",
        example="models-eu, models-us", default_words="only `bucket`",
    ),
    "allow_pickle": Option(
        help="Load pickled models. A pickle can run any code on the worker.", default="False", kind="boolean"
    ),
    "pickle_experiments": Option(
        help="Experiments of MLflow whose pickled models are loaded: ids, names, or patterns of names.",
        example="radio/*, 12",
    ),
    "pickle_memory_bytes": Option(
        help="Memory limit of the process that loads a pickle, with all that it starts, in bytes.", default=None,
        example=str(16 * 2**30), kind="integer", default_words="three quarters of the worker's memory",
    ),
    "pickle_user": Option(
        help="User and group id of the process that loads a pickle, where the worker runs as root on Linux. 0: the "
        "worker's account.",
        default=None, example="1999", kind="integer", default_words=f"{limits.PICKLE_USER}",
    ),
    "factory_packages": Option(
        help="Packages whose functions may build a model for a training run that logged only weights.",
        example="our_models, radio.nets",
    ),
    "inputs_buckets": Option(
        help="Buckets that `inputs_uri` and `evaluation_uri` may name, besides the bucket of the release.",
        example="samples, test-data",
    ),
    "protected_aliases": Option(
        help="Aliases that move only after a person approved it in Airflow.", example="champion, production"
    ),
    "signing_conn_id": Option(
        help="Connection with the private key that signs the files of a release.", example="signing",
        default_words="none: releases are not signed",
    ),
    "require_signature": Option(
        help="Move an alias only to a version whose signature is valid.", default="False", kind="boolean"
    ),
    "staging_uri": Option(
        help="Folder through which the tasks of a release pass the artifact.", default=None,
        example="s3://onnx-staging/releases", default_words="`onnx_release_staging` in `AIRFLOW_HOME`",
    ),
    "staging_conn_id": Option(
        help="Connection of type s3store or aws for a staging folder in S3.", default=defaults.S3_CONN_ID
    ),
    "cache_folder": Option(
        help="Folder on the worker's own disk that caches downloads.", default=None,
        example="/var/cache/onnx_release", default_words="`onnx_release_cache` in `AIRFLOW_HOME`",
    ),
    "cache_max_bytes": Option(
        help="Size limit of the cache folder in bytes; 0 disables the cache.",
        default=str(defaults.CACHE_MAX_BYTES), kind="integer",
    ),
    "rehearsal_environments": Option(
        help="Environments with onnxruntime that a rehearsal may name: a JSON object of names and paths on the worker.",
        example='{"serving": "/opt/serving/bin/python"}',
    ),
    "placement": Option(
        help="Queue, pool, executor and Kubernetes resources by kind of task, a JSON object.",
        example='{"export": {"queue": "gpu"}, "measure": {"queue": "measuring"}}', argument="placement",
    ),
    "export_slots": Option(
        help="Slots of the pool of the exports when it is created: exports in the whole deployment at the same time.",
        default=None, example="8", kind="integer",
        default_words="with LocalExecutor the host's CPUs, or fewer to leave two slots of its `parallelism` to other "
        f"tasks; else {defaults.EXPORT_SLOTS_MAX}",
    ),
    "measure_slots": Option(
        help="Slots of the measuring pool when it is created: one for each host that measures. Only one task is timed "
        "on a host: more slots let others load and compare meanwhile.",
        default="1", example="3", kind="integer",
    ),
    "preload": Option(
        help="Import PyTorch, ONNX Runtime and MLflow in the scheduler, from which LocalExecutor forks the tasks.",
        default="False", kind="boolean",
    ),
    "measure_lock": Option(
        help="Absolute path of the file that a task locks while it measures. All workers of a host share it.",
        default=None, example="/run/onnx_release/measure.lock",
        default_words="`onnx_release_measure.lock` in the temporary folder",
    ),
    "measure_lock_timeout_s": Option(
        help="Seconds that a task waits for another measurement on its host.",
        default=f"{limits.MEASURE_LOCK_TIMEOUT_S:g}", kind="float",
    ),
    "retries": Option(
        help="Retries of a task after a failure of a server or of the worker. A refusal is never repeated.",
        default=str(defaults.RETRIES), kind="integer",
    ),
    "retry_delay_s": Option(
        help="Seconds before the first retry. Each further delay is twice as long, and each has jitter.",
        default=f"{defaults.RETRY_DELAY_S:g}", kind="float",
    ),
    "retry_max_delay_s": Option(
        help="Longest delay of a retry in seconds.", default=f"{defaults.RETRY_MAX_DELAY_S:g}", kind="float"
    ),
    "end_retries": Option(
        help="Retries of the tasks that must outlast an outage: clean_work, which records the end of a release, and "
        "approve. The default lasts about an hour.",
        default=str(defaults.END_RETRIES), kind="integer",
    ),
    "task_timeout_s": Option(
        help="Time limit of each try of a task in seconds. A wait for a training run or a person does not count.",
        default=f"{defaults.TASK_TIMEOUT_S:.0f}", kind="float",
    ),
    "request_timeout_s": Option(
        help="Seconds that a task or the triggerer waits for MLflow or the store to answer a request, or to send more "
        "of its answer.",
        default=f"{defaults.REQUEST_TIMEOUT_S:g}", kind="float",
    ),
    "watch_experiments": Option(
        help="Names, ids or patterns of the MLflow experiments whose finished runs are released; * for all.",
        example="radio-*, 17", argument="experiments", default_words="the experiments of the routes that are set",
    ),
    "watch_filter": Option(
        help="More conditions for these runs in MLflow's filter language.", example="tags.release = 'yes'",
        argument="run_filter",
    ),
    "watch_routes": Option(
        help="Release DAG and parameters by experiment, a JSON list. The first match counts.",
        example='[{"experiment": "radio-*", "dag_id": "release_radio", "params": {"alias": "nightly"}}]',
        argument="routes", default_words="every experiment to the watch's `release_dag_id`",
    ),
    "watch_cron": Option(
        help="Schedule of the watch between asset events. It is also the interval of a backfill.",
        default=defaults.WATCH_CRON, argument="cron",
    ),
    "watch_poll_s": Option(
        help="Seconds between two polls for finished training runs.", default=str(defaults.WATCH_POLL_S), kind="float",
        argument="poll_s",
    ),
    "pages": Option(help="Show the pages of releases in Airflow.", default="True", kind="boolean"),
    "pages_mlflow_conn_id": Option(
        help="Connection of type mlflow whose releases the pages show.", default=defaults.MLFLOW_CONN_ID,
        example="mlflow_production",
    ),
}  # fmt: skip
