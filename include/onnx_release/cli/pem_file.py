"""Files in PEM form that an option names."""

from __future__ import annotations

from pathlib import Path

from onnx_release.cli.measuring import wrong_argument
from onnx_release.text import shorten

_MAX_BYTES = 2**20
_ACTION = "Give the path of a PEM file."


def read_pem(path: str, option: str) -> str:
    """Return the text of a PEM file.

    Raises:
        CommandRefused: ``wrong_argument`` for another file.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MAX_BYTES).decode("ascii")
    except (OSError, ValueError) as error:
        raise wrong_argument(option, f"cannot be read: {shorten(error)}", _ACTION) from error
    if "-----BEGIN " not in text:
        raise wrong_argument(option, f"is {path:.200}, which is not a PEM file", _ACTION)
    return text
