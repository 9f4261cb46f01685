"""Command of ``make adopt``: ``python -m adoption [--airflow 3.2.2] [--json FILE] [--keep]``.

It builds the wheel, installs it into a fresh environment with a stock Airflow that runs, and releases two models.
Exit status: 0 the first alias came within the limit and no package of before changed · 1 a step failed or a package
changed · 3 the first alias came later.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from adoption import environment as environments
from adoption.journey import Outcome, adopt, build_wheel
from adoption.services import Deployment
from adoption.steps import LIMIT_S, Stopwatch, table
from stack import interrupts
from stack.console import make_console, make_error_console
from stack.context import Context
from stack.credentials import Credentials
from stack.errors import StackError
from stack.layout import REPO, Layout
from stack.ports import Ports

AIRFLOW = "3.3.2"
CACHE = REPO / ".local" / "adopt"
INTERRUPTED, TOO_SLOW = 130, 3


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m adoption", description=__doc__.partition("\n")[0])
    parser.add_argument("--airflow", default=AIRFLOW, help="version of Airflow (%(default)s)")
    parser.add_argument("--json", type=Path, help="file for the result")
    parser.add_argument("--keep", action="store_true", help="keep the state folder and the environment")
    options = parser.parse_args(arguments)
    interrupts.install()
    versions = environments.pins(options.airflow)
    folder = CACHE / environments.key(versions)
    try:
        with environments.locked(folder):
            return _run(folder, versions, options.json, options.keep)
    except StackError as error:
        make_error_console().print(f"adopt: {error}")
        return 1
    except KeyboardInterrupt:
        make_error_console().print("adopt: interrupted. Everything that it started is stopped.")
        return INTERRUPTED


def _run(folder: Path, versions: dict[str, str], file: Path | None, keep: bool) -> int:
    watch = Stopwatch(make_console())
    with watch.step(f"environment with Airflow {versions['apache-airflow']}, MLflow and torch", counted=False):
        environment = environments.fresh(folder, versions)
    home = Path(tempfile.mkdtemp(prefix="state-", dir=folder))
    layout = Layout(home)
    layout.create()
    deployment = Deployment(Context(layout, Ports.free(), Credentials.load_or_generate(home)), environment)
    try:
        with watch.step("start of the S3 store, MLflow and the stock Airflow", counted=False):
            deployment.start_store_and_mlflow()
            deployment.prepare_airflow()
            deployment.start_airflow()
        outcome = adopt(deployment, build_wheel(home), watch)
    finally:
        deployment.stop()
        if not keep:
            deployment.remove()
    return _report(watch, versions, outcome, file)


def _report(watch: Stopwatch, versions: dict[str, str], outcome: Outcome, file: Path | None) -> int:
    changes = outcome.changes
    names = ", ".join(
        f"{name} {version}" for name, version in {"Python": platform.python_version(), **versions}.items()
    )
    watch.console.print(table(watch.steps, names))
    watch.console.print(f"Added: {', '.join(f'{name} {version}' for name, version in changes.added.items())}")
    for name, change in changes.changed.items():
        watch.console.print(f"Changed: {name} {change}")
    verdict = f"{outcome.first_s:.0f} s from pip install to the first alias (limit {LIMIT_S:.0f} s)"
    watch.console.print(f"{verdict}, {outcome.second_s:.0f} s to the second. Load {os.getloadavg()[0]:.1f}.")
    if file:
        file.write_text(json.dumps(document(watch, versions, outcome), indent=2) + "\n")
    if changes.changed:
        return 1
    return 0 if outcome.first_s <= LIMIT_S else TOO_SLOW


def document(watch: Stopwatch, versions: dict[str, str], outcome: Outcome) -> dict[str, Any]:
    """Return the result for machines."""
    return {
        "python": platform.python_version(),
        "packages": versions,
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
        "steps": [{"name": step.name, "seconds": step.seconds, "counted": step.counted} for step in watch.steps],
        "first_alias_s": outcome.first_s,
        "second_alias_s": outcome.second_s,
        "limit_s": LIMIT_S,
        "added": outcome.changes.added,
        "changed": outcome.changes.changed,
    }


if __name__ == "__main__":
    sys.exit(main())
