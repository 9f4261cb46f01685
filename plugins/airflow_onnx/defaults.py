"""Defaults and name patterns of the edge: registry, bucket, pool, queues, watching and the worker's disk."""

from __future__ import annotations

BUCKET = "onnx-models"
ALIAS = "candidate"

# These names become a part of an object key, a registry URI and a shell argument; the patterns suit all of them.
MODEL_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
ALIAS_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"
RUN_ID_PATTERN = r"^[0-9a-zA-Z_-]{1,64}$"
BUCKET_PATTERN = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
MODEL_URI_PATTERN = r"^(runs:/[0-9a-zA-Z_-]{1,64}/.+|models:/.+)$"
INPUTS_URI_PATTERN = r"^(s3://[a-z0-9.-]+/|runs:/|models:/).+\.npz$"
# A shell argument without a comma: commas separate the queues of a worker.
QUEUE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
SHA_PREFIX_LENGTH = 16

MEASURE_POOL = "onnx_measure"

# The trigger polls MLflow at this interval. A search goes back this far: a run may be reported late, or by a clock
# that is wrong.
WATCH_POLL_S = 2.0
WATCH_CRON = "*/10 * * * *"
WATCH_LOOKBACK_H = 24.0

# Releases in progress in one Airflow, of new and old training runs together.
RELEASES_ACTIVE_MAX = 64
# Releases of old training runs that one DAG run of `watch_training` keeps in progress.
RELEASES_AT_ONCE = 2
RELEASES_AT_ONCE_MAX = 64
# The assumed duration of one release in a plan, before the first release.
RELEASE_ASSUMED_S = 60.0

# The work folder of an unfinished release is kept this long: a cleared task reads the files of the task before it.
WORK_KEEP_S = 7 * 24 * 3600.0
# The size of a worker's cache of downloads, trained models and artifacts together.
CACHE_MAX_BYTES = 10 * 2**30
