"""Checks of the names that become object keys and registry URIs. Names from outside are data, never paths."""

from __future__ import annotations

import re

from airflow_onnx import defaults
from onnx_release.errors import Refused

EXACT = "exact"


def _checked(kind: str, text: str, pattern: str, rule: str) -> str:
    if not isinstance(text, str) or not re.fullmatch(pattern, text):
        raise Refused(f"{kind} {text!r:.200}", f"does not match {pattern}", f"Use {rule}.")
    return text


def model_name(text: str) -> str:
    """Return a registered model's name unchanged, or raise `Refused`."""
    rule = "1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit: it becomes an object key"
    return _checked("model name", text, defaults.MODEL_NAME_PATTERN, rule)


def bucket(text: str) -> str:
    """Return a bucket's name unchanged, or raise `Refused`."""
    return _checked("bucket", text, defaults.BUCKET_PATTERN, "3 to 63 lower-case letters, digits, '.' or '-'")


def run_id(text: str) -> str:
    """Return a training run's id unchanged, or raise `Refused`."""
    return _checked("training run id", text, defaults.RUN_ID_PATTERN, "the id that the run's MLflow page shows")


def alias(text: str) -> str:
    """Return a model version's alias unchanged, or raise `Refused`."""
    rule = "a lower-case letter, then up to 63 lower-case letters, digits, '_' or '-'"
    checked = _checked("alias", text, defaults.ALIAS_PATTERN, rule)
    # MLflow keeps these for itself: `latest` is computed, and `v1` would read as version 1.
    if checked == "latest" or re.fullmatch(r"v\d+", checked):
        raise Refused(f"alias {checked!r}", "is reserved by MLflow", "Choose another, for example 'candidate'.")
    return checked


def alias_for(text: str, precision: str) -> str:
    """Return the alias of a release: with its precision as a suffix where that is reduced; `Refused` for a bad one."""
    return alias(text) if precision == EXACT else alias(f"{text}-{precision}")


def stage_for(text: str, precision: str) -> str:
    """Return the legacy stage, empty for none; `Refused` for a model of reduced precision.

    A stage has no suffix: whoever loads by it would take the model for the exact one.
    """
    stage = "" if text == "none" else text
    if stage and precision != EXACT:
        raise Refused(
            f"stage {stage!r:.80}",
            f"was asked for, and the model is {precision}",
            f"Load it by its alias, which ends in '-{precision}', or release without 'stage'.",
        )
    return stage


def object_prefix(model: str, training_run_id: str, sha256: str) -> str:
    """Return ``<model name>/<training run id>/<sha256 prefix>/``, the key prefix of one artifact."""
    return f"{model_name(model)}/{run_id(training_run_id)}/{sha256[: defaults.SHA_PREFIX_LENGTH]}/"
