"""Polls one training run from the triggerer, over MLflow's REST API and without MLflow's (blocking) client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from airflow.sdk import BaseHook
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_onnx.hooks.mlflow import MlflowServer
from airflow_onnx.tracking.training_run import UNFINISHED

REQUEST_TIMEOUT_S = 30.0


class MlflowRunTrigger(BaseTrigger):
    """Fires once the training run is no longer running, whatever became of it.

    The event carries only that fact: the sensor looks at the run anew. An outage of MLflow is waited out, up to the
    sensor's own timeout; an answer that the run is unknown, or that the key is wrong, fires at once.

    :param poll_interval_s: seconds between two looks.
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
        async with httpx.AsyncClient(verify=server.verify, timeout=REQUEST_TIMEOUT_S) as client:
            while await self._is_unfinished(client, server):
                await asyncio.sleep(self.poll_interval_s)
        yield TriggerEvent({"training_run_id": self.training_run_id})

    async def _is_unfinished(self, client: httpx.AsyncClient, server: MlflowServer) -> bool:
        header = server.authorization()
        try:
            answer = await client.get(
                f"{server.tracking_uri}/api/2.0/mlflow/runs/get",
                params={"run_id": self.training_run_id},
                headers={"Authorization": header} if header else {},
            )
        except httpx.TransportError as error:
            return self._sit_out(server, str(error))
        if answer.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
            return self._sit_out(server, f"status {answer.status_code}")
        self._outage = False
        if answer.status_code != httpx.codes.OK:
            return False
        info = answer.json()["run"]["info"]
        return info.get("lifecycle_stage") != "deleted" and info["status"] in UNFINISHED

    def _sit_out(self, server: MlflowServer, reason: str) -> bool:
        # Once for each outage: a line for each look would fill the log of a night.
        if not self._outage:
            self.log.warning("MLflow at %s does not answer (%s); looking again.", server.tracking_uri, reason)
        self._outage = True
        return True
