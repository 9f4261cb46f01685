"""Import of the libraries into the scheduler's process, from which LocalExecutor forks the processes of the tasks.

Each task then starts without the 2 to 4 s of CPU time for its imports. Nothing is computed before the fork, because
OpenMP's threads do not survive it.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module

from airflow.listeners import hookimpl

from airflow_onnx.deployment import settings

log = logging.getLogger(__name__)

# None of this package: tasks of a scheduler that runs on during an upgrade would mix two versions of it.
MODULES = (
    "mlflow",
    "onnxruntime",
    "onnxscript",
    "scipy.special",
    "torch.onnx",
    "torch._dynamo",
    "airflow.providers.amazon.aws.hooks.s3",
)


@hookimpl
def on_starting(component: object) -> None:
    """Import the modules when the scheduler starts, before its executor forks. The option `preload` enables it."""
    # A task's process calls this too.
    if type(component).__name__ == "Job" and sys.argv[1:2] == ["scheduler"] and settings.preload():
        for name in MODULES:
            try:
                import_module(name)
            except ImportError as error:
                # Tasks may run elsewhere, with more packages.
                log.warning("Not imported before the tasks: %s (%s)", name, error)
