"""Names of the MLflow tags that this package reads and writes. docs/tags.md lists them with these texts."""

from __future__ import annotations

from datetime import UTC, datetime

ROOT = "onnx_release"
"""First part of the tags of a training run, and the folder of its release artifacts."""

# MLflow refuses longer tag values on runs.
VALUE_MAX_CHARACTERS = 4000

# Set by the training script, for the release.
MODEL_NAME = f"{ROOT}.model_name"
"""Name of the registered model. It may also be a tag of the experiment."""
FACTORY = f"{ROOT}.factory"
"""Function that builds the model of a file of weights, as ``package.module:name``."""
FACTORY_KWARGS = f"{ROOT}.factory_kwargs"
"""Arguments of the factory, a JSON object."""
INPUT_SPEC = f"{ROOT}.input_spec"
"""Inputs of a model without a signature, a JSON list."""
WEIGHTS_KEY = f"{ROOT}.weights_key"
"""Key of the weights in a file with several networks."""
EVALUATION = f"{ROOT}.evaluation"
"""Path of an ``.npz`` file with inputs and targets among the run's artifacts."""
UNCERTAINTY_OF = f"{ROOT}.uncertainty_of"
"""Outputs with the uncertainty of another one, such as ``positions:uncertainties``."""
LOGGED_MODEL_NAME = f"{ROOT}.logged_model_name"
"""Logged model to release, for a run with several."""

# The state of the release.
STATUS = f"{ROOT}.status"
"""State of the release: ``triggered``, ``running``, ``released``, ``refused``, ``failed`` or ``retired``."""
HEADLINE = f"{ROOT}.headline"
"""Result in one sentence."""
REASON = f"{ROOT}.reason"
"""Reason of a refusal or failure."""
REASON_CODE = f"{ROOT}.reason_code"
"""Code of a refusal."""
DAG_RUN_ID = f"{ROOT}.dag_run_id"
"""DAG run of that state. It is absent after a refusal by the watch."""
DAG_RUN_URL = f"{ROOT}.dag_run_url"
"""Its address in Airflow."""
WATCHED = f"{ROOT}.watched"
"""Decision of the watch: ``new`` or ``old`` for a started release, else the reason."""

# The newest attempt. `ATTEMPTED_AT` is a sortable time in UTC: the page of releases has the newest first.
ATTEMPTED_AT = f"{ROOT}.attempted_at"
"""Time of the newest attempt in UTC. It sorts as text."""
LAST_ATTEMPT = f"{ROOT}.last_attempt"
"""Outcome of the newest attempt, or ``waiting`` for an approval."""
LAST_ATTEMPT_URL = f"{ROOT}.last_attempt_url"
"""Address of its DAG run."""
RERUN_URL = f"{ROOT}.rerun_url"
"""Trigger page, filled in with the parameters of that attempt. The longest are omitted if they do not fit."""

# The current release.
REGISTERED_MODEL = f"{ROOT}.registered_model"
"""Name of the registered model."""
SHA256 = f"{ROOT}.sha256"
"""Digest of the files of the version."""
VERSION = f"{ROOT}.version"
"""Number of the version."""
ALIAS = f"{ROOT}.alias"
"""Aliases that moved to the version, separated by commas."""
ALIAS_NOTE = f"{ROOT}.alias_note"
"""Reason why the alias stays at another version."""
S3_URI = f"{ROOT}.s3_uri"
"""Folder of the version in the store."""
LATENCY_VERDICT = f"{ROOT}.latency_verdict"
"""Verdict on the latency."""
WARNING = f"{ROOT}.warning"
"""First gate that did not simply pass."""
WALL_S = f"{ROOT}.wall_s"
"""Work of all tasks in s, without waits."""
PRECISION = f"{ROOT}.precision"
"""``exact``, ``int8`` or ``float16``."""
RETIRED = f"{ROOT}.retired"
"""Version of the training run that was retired last, with time, person and reason. It stays after a new release."""
VERIFICATION = f"{ROOT}.verification"
"""Newest verification of the version, a JSON object (`verify_releases`)."""

# On a model version.
VERSION_STATUS = "onnx.status"
"""State of the version: ``registered`` until its alias is decided, then the state of the release."""
VERSION_SHA256 = "onnx.sha256"
"""Digest of the files, without the two reports."""
VERSION_SIZE = "onnx.size"
"""Size of the files, for people."""
VERSION_OPSET = "onnx.opset"
"""ONNX opset."""
VERSION_PRECISION = "onnx.precision"
"""``exact``, ``int8`` or ``float16``."""
VERSION_SPEED = "onnx.speed"
"""Speedup at the serving batch size, with its interval."""
VERSION_RUNTIMES = "onnx.runtimes"
"""Other versions of ONNX Runtime that loaded the artifact and returned PyTorch\'s outputs (`target_runtimes`)."""
VERSION_REHEARSED = "onnx.rehearsed"
"""Day of the last rehearsal, and its result in each version of ONNX Runtime."""
VERSION_SERVING = "onnx.serving"
"""Addresses of the layouts of model servers (`serving_layouts`)."""
VERSION_SIGNATURE = "onnx.signature"
"""Key that signed the files: the sha256 of its public half in PEM form."""
VERSION_TRAINING_RUN = "onnx.training_run"
"""Id of the training run."""
VERSION_DAG_RUN = "onnx.dag_run"
"""Address of the DAG run."""
APPROVAL = "onnx.approval"
"""Answer of a person about the version, such as ``was rejected by anna: too slow``."""
VERSION_VERIFIED = "onnx.verified"
"""Verdict of the newest verification: ``passed`` or ``failed``."""
VERSION_VERIFIED_AT = "onnx.verified_at"
"""Its time in UTC."""
VERSION_VERIFIED_RUNTIME = "onnx.verified_runtime"
"""Version of ONNX Runtime that ran the model."""
VERSION_VERIFIED_REASON = "onnx.verified_reason"
"""Failed checks."""
VERSION_VERIFICATION_LOG = "onnx.verification_log"
"""Newest changes of the verdict, a JSON list."""

# On a registered model, while a release moves its aliases.
PROMOTION_LOCK = "onnx.promotion_lock"
"""Lock while a release moves the aliases of the model."""
# On a registered model: the moves of its aliases, in numbered tags.
ALIAS_LOG = f"{ROOT}.alias_log"
"""Moves of the aliases, in numbered tags."""
RETIRING = "onnx.retiring"
"""Retirement of a version that was begun and has not ended, in a tag with its number."""


def now() -> str:
    """Return the present time in UTC, in the form of `ATTEMPTED_AT`."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def of_precision(name: str, precision: str) -> str:
    """Return the tag of a release of reduced precision, such as ``onnx_release.int8.version``."""
    return f"{ROOT}.{precision}.{name.removeprefix(f'{ROOT}.')}"


def shortened(values: dict[str, str]) -> dict[str, str]:
    """Return the tags with values that MLflow accepts."""
    return {name: value[:VALUE_MAX_CHARACTERS] for name, value in values.items()}
