"""Defaults and name patterns of the edge: registry, bucket, pool, queues, watching and the worker's disk."""

from __future__ import annotations

from onnx_release.limits import FACTORY_PATTERN
from onnx_release.training_runs.names import NamePattern

ALIAS = "candidate"
CHAMPION_ALIAS = "champion"

# These names become a part of an object key, a registry URI and a shell argument; the patterns suit all of them.
ALIAS_NAME = NamePattern(
    r"^[a-z][a-z0-9_-]{0,63}$", "a lower-case letter, then up to 63 lower-case letters, digits, '_' or '-'"
)
BUCKET_NAME = NamePattern(r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", "3 to 63 lower-case letters, digits, '.' or '-'")
# No folder name begins with a dot: `..` would leave the prefix in tools that take keys for paths.
PREFIX = NamePattern(
    r"^(?=.{1,200}$)[A-Za-z0-9_][A-Za-z0-9._=-]*(/[A-Za-z0-9_][A-Za-z0-9._=-]*)*$",
    "folders of letters, digits, '.', '_', '=' or '-', joined by '/', at most 200 characters",
)
DAG_ID = NamePattern(r"^[A-Za-z0-9_.-]{1,250}$", "up to 250 letters, digits, '.', '_' or '-'")
MODEL_URI = NamePattern(
    r"^(runs:/[0-9a-f]{32}/.+|models:/(m-[0-9a-zA-Z]+|[^/@]+(/[0-9]+|@[^/@]+)))$",
    "runs:/RUN_ID/PATH, models:/m-ID, models:/NAME/VERSION or models:/NAME@ALIAS",
)
INPUTS_URI = NamePattern(
    r"^(s3://[a-z0-9.-]+/|runs:/|models:/).+\.npz$", "s3://BUCKET/KEY.npz or runs:/RUN_ID/PATH.npz"
)
FACTORY_PATH = NamePattern(FACTORY_PATTERN, "package.module:name")
# A shell argument without a comma: commas separate the queues of a worker.
QUEUE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
SHA_PREFIX_LENGTH = 16

MLFLOW_CONN_ID = "mlflow_default"
S3_CONN_ID = "minio_default"
MEASURE_POOL = "onnx_measure"
EXPORT_POOL = "onnx_export"
WATCH_POOL = "onnx_watch"
# Decisions of the watch at the same time. Each takes about a second.
WATCH_SLOTS = 2
# Slots of Airflow's default pool, for exports on more hosts than the scheduler's.
EXPORT_SLOTS_MAX = 128
# Of the tasks of a release, the last one has the highest priority, which is their number.
WATCH_PRIORITY = 1000

# The trigger polls MLflow at this interval. A search goes back this far: a run may be reported late, or by a clock
# that is wrong.
WATCH_POLL_S = 2.0
WATCH_CRON = "*/10 * * * *"
WATCH_LOOKBACK_H = 24.0

# Releases in progress of one release DAG, of new and old training runs together.
RELEASES_ACTIVE_MAX = 64
# Releases of old training runs that one DAG run of the watch keeps in progress.
RELEASES_AT_ONCE = 2
RELEASES_AT_ONCE_MAX = 64

# The work folder of an unfinished release is kept this long: a cleared task reads the files of the task before it.
WORK_KEEP_S = 7 * 24 * 3600.0
# The garbage collection takes nothing that is younger. The lowest value is longer than an upload.
GRACE_H, GRACE_MIN_H, GRACE_MAX_H = 24.0, 1.0, 24.0 * 366
# Retirement of versions. The lowest age leaves a day for an alias that was moved by mistake.
RETIRE_AGE_DAYS, RETIRE_AGE_MIN_DAYS, RETIRE_AGE_MAX_DAYS = 90.0, 1.0, 36500.0
RETIRE_KEEP_NEWEST, RETIRE_KEEP_PREVIOUS, RETIRE_KEEP_MAX = 5, 1, 1000
# The size of a worker's cache of downloads, trained models and artifacts together.
CACHE_MAX_BYTES = 10 * 2**30

RETRIES, RETRY_DELAY_S, RETRY_MAX_DELAY_S = 3, 10.0, 300.0
# With these delays about an hour.
END_RETRIES = 15
# Longer than the limits of its parts: the child process of a pickle, a tuning, a wait for another measurement.
TASK_TIMEOUT_S = 12 * 3600.0
REQUEST_TIMEOUT_S = 60.0

# A person answers a question of Airflow within this time.
APPROVAL_TIMEOUT_H = 72.0

# A rehearsal: the versions of one DAG run, the time limit of one model in one runtime in s, and where the reports go.
REHEARSAL_VERSIONS_MAX = 500
REHEARSAL_TIMEOUT_S, REHEARSAL_TIMEOUT_MAX_S = 300.0, 86400.0
REHEARSAL_EXPERIMENT = "onnx-release-rehearsals"
