"""Training runs for a measurement: real models, logged while the run goes on; when a run ends, the caller decides."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from bench.watch.stacks import EXPERIMENT
from stack import children
from stack.context import Context
from stack.environment import clean_environment
from stack.errors import StackError
from stack.layout import REPO
from stack.setup import client_environment


def train_runs(context: Context, seeds: Sequence[int], *, size: str = "") -> list[str]:
    """Train one model for each seed, in a process of its own; returns the ids of the runs, which are still RUNNING.

    With a `size` they are reference models of that size instead, which are made and not trained. Raises `StackError`
    with the end of its output when that fails.
    """
    which = ["bench.scale.reference_runs", EXPERIMENT, size] if size else ["bench.watch.small_models", EXPERIMENT]
    argv = [sys.executable, "-m", *which, *map(str, seeds)]
    path = ":".join(str(REPO / folder) for folder in ("include", "plugins", "."))
    # MLflow's client leaves its server in the environment of its process; here that process is a child.
    env = clean_environment(**client_environment(context), PYTHONPATH=path, MLFLOW_DISABLE_TELEMETRY="true")
    status, output = children.run(argv, env, context.layout.home)
    ids = [line for line in output.splitlines() if re.fullmatch(r"[0-9a-f]{32}", line)]
    if status != 0 or len(ids) != len(seeds):
        raise StackError(f"{len(ids)} of {len(seeds)} models were trained (status {status}):\n{output[-2000:]}")
    return ids
