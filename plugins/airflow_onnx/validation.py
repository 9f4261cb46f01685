"""Validation of names that become object keys and registry URIs."""

from __future__ import annotations

import re

from airflow_onnx import defaults
from onnx_release.errors import ParameterRefused
from onnx_release.records import Precision
from onnx_release.training_runs.names import require_match, validate_model_name, validate_run_id


def validate_bucket(text: str) -> str:
    """Return the name of a bucket unchanged.

    :raises ParameterRefused: if it does not match the pattern.
    """
    return require_match("bucket", text, defaults.BUCKET_NAME)


def validate_prefix(text: str) -> str:
    """Return the folder in a bucket unchanged. An empty text stands for the root of the bucket.

    :raises ParameterRefused: if it does not match the pattern.
    """
    return require_match("prefix", text, defaults.PREFIX) if text else ""


def validate_alias(text: str) -> str:
    """Return the alias of a model version unchanged.

    :raises ParameterRefused: if it does not match the pattern, or is reserved.
    """
    alias = require_match("alias", text, defaults.ALIAS_NAME)
    # MLflow computes `latest` and reads `v1` as version 1.
    if alias == "latest" or re.fullmatch(r"v\d+", alias):
        action = "Choose another, for example 'candidate'."
        raise ParameterRefused(f"The alias {alias!r}", "is reserved by MLflow", action, code="reserved_alias")
    return alias


def alias_for(text: str, precision: Precision | str) -> str:
    """Return the alias of a release. A reduced precision becomes a suffix.

    :raises ParameterRefused: if the result is not a valid alias.
    """
    return validate_alias(text if Precision(precision).is_exact else f"{text}-{precision}")


def stage_for(text: str, precision: Precision | str) -> str | None:
    """Return the legacy stage, or None for none.

    :raises ParameterRefused: for a model of reduced precision. A stage has no suffix: a consumer that loads by it
        would get the reduced model in place of the exact one.
    """
    stage = None if text in ("", "none") else text
    if stage is not None and not Precision(precision).is_exact:
        raise ParameterRefused(
            f"The stage {stage!r:.80}",
            f"is only for exact models, and the model is {precision}",
            f"Load it by its alias, which ends in '-{precision}', or release without 'stage'.",
            code="stage_of_reduced_precision",
        )
    return stage


def run_folder_uri(bucket: str, prefix: str, model_name: str, training_run_id: str) -> str:
    """Return ``s3://<bucket>/<prefix>/<model name>/<training run id>``, the folder of all releases of one run.

    :raises ParameterRefused: if one of the names does not match its pattern.
    """
    folders = (validate_prefix(prefix), validate_model_name(model_name), validate_run_id(training_run_id))
    return "/".join((f"s3://{validate_bucket(bucket)}", *filter(None, folders)))


def artifact_uri(run_folder: str, sha256: str) -> str:
    """Return ``<folder of the run>/<sha256 prefix>``, the folder of one artifact."""
    return f"{run_folder}/{sha256[: defaults.SHA_PREFIX_LENGTH]}"
