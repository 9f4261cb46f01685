"""Hostile inputs: files and names that try to run code, to leave a folder or to fill a worker.

Each needs only a folder. None needs a service, so the tests run all of them too. ``python -m soak.hostile FOLDER``
tries all of them in empty folders below the folder, and prints the result as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from onnx_release.errors import Refused
from soak import hostile_files, hostile_onnx

_TEXTS = (
    "../../etc/passwd", "/etc/passwd", "..", ".", "a/b", "a\\b", "net\n", "net\r\nERROR forged line", "net\0",
    "<script>alert(1)</script>", "{{ conf }}", "{% for x in y %}", "[x](javascript:alert(1))", "' OR 1=1 --",
    "name = 'x' AND run_id != ''", "${HOME}", "$(id)", "-rf", "\u202egpj.exe", "\ud800", "", " ", "x" * 10_000_000,
)  # fmt: skip
_URIS = (
    "file:///etc/passwd", "/etc/passwd.npz", "http://169.254.169.254/latest/x.npz", "https://evil.test/x.npz",
    "models:/http://169.254.169.254/x.npz", "mlflow-artifacts://evil.test/x.npz", "runs:/../../x.npz",
    "dbfs:/x.npz", "ftp://evil.test/x.npz", "gs://bucket/x.npz",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileInput:
    """One hostile input.

    :param name: its kind and the trick, for the table.
    :param run: gives it to the code that reads it, with files in an empty folder. It returns only if the input was
        accepted.
    """

    name: str
    run: Callable[[Path], object]

    def refusal(self, folder: Path) -> str:
        """Return the code of the refusal, or an empty text if the input was accepted or has run code.

        :param folder: an empty folder.
        """
        code = ""
        try:
            self.run(folder)
        except Refused as refusal:
            code = refusal.code
        return "" if any(folder.rglob(hostile_files.MARKER)) else code


def scenarios() -> list[HostileInput]:
    """Return every hostile input."""
    return [*_names(), *_uris(), *hostile_files_inputs(), *onnx_inputs()]


def hostile_files_inputs() -> Iterator[HostileInput]:
    """Yield files of models, weights and inputs."""
    for name, run in hostile_files.FILES.items():
        yield HostileInput(name=name, run=run)


def onnx_inputs() -> Iterator[HostileInput]:
    """Yield ONNX files."""
    for name, edit in hostile_onnx.EDITS.items():
        yield HostileInput(name=f"ONNX: {name}", run=partial(hostile_onnx.check, edit=edit))


def _given(check: Callable[..., object], *values: str) -> Callable[[Path], object]:
    def run(_: Path) -> object:
        return check(*values)

    return run


def _names() -> Iterator[HostileInput]:
    from airflow_onnx.validation import validate_alias, validate_bucket
    from onnx_release.training_runs.names import validate_model_name, validate_run_id

    checks = {"model": validate_model_name, "run id": validate_run_id, "alias": validate_alias}
    for kind, check in (checks | {"bucket": validate_bucket}).items():
        for text in _TEXTS:
            yield HostileInput(name=f"name of {kind}: {text!r:.40}", run=_given(check, text))


def _uris() -> Iterator[HostileInput]:
    from airflow_onnx.tracking.release_inputs import require_form

    for uri in _URIS:
        yield HostileInput(name=f"URI of inputs: {uri}", run=_given(require_form, uri, "inputs_uri"))


def main(folder: str) -> None:
    """Try all inputs. Print their number and the names of those that were accepted."""
    inputs, accepted = scenarios(), []
    for number, one in enumerate(inputs):
        place = Path(folder, str(number))
        place.mkdir()
        if not one.refusal(place):
            accepted.append(one.name)
    print(json.dumps({"tried": len(inputs), "accepted": accepted}))


if __name__ == "__main__":
    main(*sys.argv[1:])
