"""Release with a notifier for each way to end. Each call adds a line to a file in AIRFLOW_HOME."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from airflow.sdk import BaseNotifier

from airflow_onnx.dag import release_dag

END = "{{ release.to_dict() | tojson }}"


class Writer(BaseNotifier):
    """Notifier that writes its rendered text to a file."""

    template_fields = ("text",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def notify(self, context: Any) -> None:
        """Add the line."""
        with Path(os.environ["AIRFLOW_HOME"], "notified").open("a") as file:
            file.write(f"{self.text}\n")


dag = release_dag(
    "release_notified",
    on_released=Writer(f"on_released {END}"),
    on_refused=[Writer(f"on_refused {END}")],
    on_failed=Writer(f"on_failed {END}"),
)
# A killed task is usually retried. Here it ends the release.
dag.get_task("export").retries = 0
