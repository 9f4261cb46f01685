"""Names of the MLflow tags that this package reads and writes. Their meaning is in docs/operations.md."""

from __future__ import annotations

from datetime import UTC, datetime

ROOT = "onnx_release"
"""First part of the tags of a training run, and the folder of its release artifacts."""

# MLflow refuses longer tag values on runs.
VALUE_MAX_CHARACTERS = 4000

# Set by the training script, for the release.
MODEL_NAME = f"{ROOT}.model_name"
FACTORY = f"{ROOT}.factory"
FACTORY_KWARGS = f"{ROOT}.factory_kwargs"
INPUT_SPEC = f"{ROOT}.input_spec"
WEIGHTS_KEY = f"{ROOT}.weights_key"
EVALUATION = f"{ROOT}.evaluation"
UNCERTAINTY_OF = f"{ROOT}.uncertainty_of"
LOGGED_MODEL_NAME = f"{ROOT}.logged_model_name"

# The state of the release.
STATUS = f"{ROOT}.status"
HEADLINE = f"{ROOT}.headline"
REASON = f"{ROOT}.reason"
REASON_CODE = f"{ROOT}.reason_code"
DAG_RUN_ID = f"{ROOT}.dag_run_id"
DAG_RUN_URL = f"{ROOT}.dag_run_url"
WATCHED = f"{ROOT}.watched"

# The newest attempt. `ATTEMPTED_AT` is a sortable time in UTC: the page of releases has the newest first.
ATTEMPTED_AT = f"{ROOT}.attempted_at"
LAST_ATTEMPT = f"{ROOT}.last_attempt"
LAST_ATTEMPT_URL = f"{ROOT}.last_attempt_url"
RERUN_URL = f"{ROOT}.rerun_url"

# The current release.
REGISTERED_MODEL = f"{ROOT}.registered_model"
SHA256 = f"{ROOT}.sha256"
VERSION = f"{ROOT}.version"
ALIAS = f"{ROOT}.alias"
ALIAS_NOTE = f"{ROOT}.alias_note"
S3_URI = f"{ROOT}.s3_uri"
LATENCY_VERDICT = f"{ROOT}.latency_verdict"
WARNING = f"{ROOT}.warning"
WALL_S = f"{ROOT}.wall_s"
PRECISION = f"{ROOT}.precision"

# On a model version.
VERSION_STATUS = "onnx.status"
VERSION_SHA256 = "onnx.sha256"
VERSION_SIZE = "onnx.size"
VERSION_OPSET = "onnx.opset"
VERSION_PRECISION = "onnx.precision"
VERSION_SPEED = "onnx.speed"
VERSION_TRAINING_RUN = "onnx.training_run"
VERSION_DAG_RUN = "onnx.dag_run"
# The answer of a person about the version, such as "was rejected by anna: too slow".
APPROVAL = "onnx.approval"

# On a registered model, while a release moves its aliases.
PROMOTION_LOCK = "onnx.promotion_lock"
# On a registered model: the moves of its aliases, in numbered tags.
ALIAS_LOG = f"{ROOT}.alias_log"


def now() -> str:
    """Return the present time in UTC, in the form of `ATTEMPTED_AT`."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def of_precision(name: str, precision: str) -> str:
    """Return the tag of a release of reduced precision, such as ``onnx_release.int8.version``."""
    return f"{ROOT}.{precision}.{name.removeprefix(f'{ROOT}.')}"


def shortened(values: dict[str, str]) -> dict[str, str]:
    """Return the tags with values that MLflow accepts."""
    return {name: value[:VALUE_MAX_CHARACTERS] for name, value in values.items()}
