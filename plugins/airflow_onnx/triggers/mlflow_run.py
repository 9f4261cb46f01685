"""Trigger that waits for the end of one training run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_onnx.hooks.mlflow_rest import AsyncMlflowRest
from airflow_onnx.hooks.mlflow_server import MlflowServer
from onnx_release.errors import Refused, Transient


class MlflowRunTrigger(BaseTrigger):
    """Trigger that fires once the training run has ended, in any state.

    The sensor then reads the run again. During an outage of MLflow the trigger goes on polling, up to the sensor's
    timeout. It also fires if MLflow refuses the request: the run does not exist, or the credentials are wrong.

    :param poll_interval_s: seconds between two polls.
    """

    def __init__(self, *, training_run_id: str, mlflow_conn_id: str, poll_interval_s: float) -> None:
        super().__init__()
        self.training_run_id = training_run_id
        self.mlflow_conn_id = mlflow_conn_id
        self.poll_interval_s = poll_interval_s
        self._outage = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments; no secret is among them."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "training_run_id": self.training_run_id,
                "mlflow_conn_id": self.mlflow_conn_id,
                "poll_interval_s": self.poll_interval_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the run has ended, then fire once."""
        server = MlflowServer.from_connection(await BaseHook.aget_connection(self.mlflow_conn_id))
        async with AsyncMlflowRest(server) as rest:
            while await self._is_unfinished(rest):
                await asyncio.sleep(self.poll_interval_s)
        yield TriggerEvent({"training_run_id": self.training_run_id})

    async def _is_unfinished(self, rest: AsyncMlflowRest) -> bool:
        try:
            run = await rest.run(self.training_run_id)
        except Refused:
            return False  # The sensor reports the refusal.
        except Transient as error:
            # One line for each outage: a line for each poll would fill the log.
            if not self._outage:
                self.log.warning("%s The trigger goes on polling.", error)
            self._outage = True
            return True
        self._outage = False
        return run.unfinished
