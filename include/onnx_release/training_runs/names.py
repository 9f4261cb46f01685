"""Names of registered models and training runs: their form, and the name that an experiment gives."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import NamedTuple

from onnx_release.errors import ParameterRefused, TrainingRunRefused
from onnx_release.training_runs import tags


class NamePattern(NamedTuple):
    """Allowed form of a name: a regular expression, and the same in words for messages and the trigger form."""

    regexp: str
    words: str


# These names become a part of an object key, a registry URI and a shell argument; the patterns suit all of them.
MODEL_NAME = NamePattern(
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
    "1 to 128 letters, digits, '.', '_' or '-', starting with a letter or digit",
)
RUN_ID = NamePattern(r"^[0-9a-f]{32}$", "the 32 hex digits from the run's page in MLflow")

# MLflow's own default of `log_model(name=…)`. The names of files of weights differ from run to run.
FILE_NAME = "model"
_MAX_CHARACTERS = 128
_DIGEST_CHARACTERS = 8
_WAYS = (
    f"Give the parameter model_name, or set the tag {tags.MODEL_NAME} on the run or on its experiment: letters, "
    "digits, '.', '_' or '-'."
)


def require_match(kind: str, text: str, pattern: NamePattern) -> str:
    """Return a name unchanged.

    :param kind: the kind of the name, for the message.
    :raises ParameterRefused: if it does not match the pattern.
    """
    if not isinstance(text, str) or not re.fullmatch(pattern.regexp, text):
        raise ParameterRefused(f"The {kind} {text!r:.200}", "is not valid", f"Use {pattern.words}.", code="wrong_name")
    return text


def validate_model_name(text: str) -> str:
    """Return the name of a registered model unchanged.

    :raises ParameterRefused: if it does not match the pattern.
    """
    return require_match("model name", text, MODEL_NAME)


def validate_run_id(text: str) -> str:
    """Return the id of a training run unchanged.

    :raises ParameterRefused: if it does not match the pattern.
    """
    return require_match("training run id", text, RUN_ID)


def given_name(*texts: str | None) -> str | None:
    """Return the first name that a person gave, or None.

    :raises ParameterRefused: if it is not a valid name.
    """
    name = next((text.strip() for text in texts if text and text.strip()), None)
    return validate_model_name(name) if name else None


def derived_name(experiment: str, logged_model: str) -> str:
    """Return ``<experiment>-<logged model>`` made valid.

    Accents are removed, and other characters become one dash. A digest replaces lost letters and digits, and the end of
    a long name: different experiments never share a name because of it.

    :raises TrainingRunRefused: if the experiment's name has no character that may be in a name.
    """
    parts = [_valid_characters(text) for text in (experiment, logged_model)]
    if not parts[0]:
        raise TrainingRunRefused(
            f"The experiment {experiment!r:.200}",
            "has no letter or digit of the ASCII alphabet, so the registered model has no name",
            _WAYS,
            code="no_model_name",
        )
    name = "-".join(filter(None, parts))
    if len(name) <= _MAX_CHARACTERS and not any(map(_loses_letters, (experiment, logged_model))):
        return name
    digest = hashlib.sha256(f"{experiment}\0{logged_model}".encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{name[: _MAX_CHARACTERS - _DIGEST_CHARACTERS - 1].rstrip('.-_')}-{digest}"


def _valid_characters(text: str) -> str:
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_text).strip("-._")


def _loses_letters(text: str) -> bool:
    """Return True if the text has a letter or digit that no ASCII character replaces."""
    decomposed = unicodedata.normalize("NFKD", text)
    return any(character.isalnum() and not character.isascii() for character in decomposed)
