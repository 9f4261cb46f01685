"""Rings for `watch_training` when MLflow knows of finished training runs that nobody has decided about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRuntimeError
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_onnx.hooks.mlflow import MlflowServer
from airflow_onnx.hooks.mlflow_rest import client_settings
from airflow_onnx.watch.poll import Bell
from airflow_onnx.watch.queries import Scope
from onnx_release.errors import Refused, Transient

# Between two tries while MLflow, its connection or Airflow's API fails.
TROUBLE_S = 5.0
IDS_SHOWN = 20
TROUBLE = (
    Refused,
    Transient,
    AirflowNotFoundException,
    AirflowRuntimeError,
    httpx.TransportError,
    ValueError,
)


class MlflowFinishedRunsTrigger(BaseEventTrigger):
    """Fires an event for each poll that finds new finished runs, and goes on polling.

    The event is only a bell: the DAG run that it starts asks MLflow anew. After a restart of the triggerer it may ring
    again for the same runs, which finds nothing to do.

    :param experiments: names or ids, or ``*``.
    :param lookback_h: the furthest that a poll goes back.
    :param poll_interval_s: seconds between two polls.
    """

    def __init__(
        self,
        *,
        experiments: list[str],
        run_filter: str,
        mlflow_conn_id: str,
        lookback_h: float,
        poll_interval_s: float,
    ) -> None:
        super().__init__()
        self.experiments = experiments
        self.run_filter = run_filter
        self.mlflow_conn_id = mlflow_conn_id
        self.lookback_h = lookback_h
        self.poll_interval_s = poll_interval_s
        self._trouble = ""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments; no secret is among them."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "experiments": self.experiments,
                "run_filter": self.run_filter,
                "mlflow_conn_id": self.mlflow_conn_id,
                "lookback_h": self.lookback_h,
                "poll_interval_s": self.poll_interval_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for ever; an outage is waited out, however long, as nobody would start this again."""
        scope = Scope(experiments=tuple(self.experiments), run_filter=self.run_filter)
        bell = Bell(scope, self.lookback_h, self.asset_state_store)
        while True:
            try:
                server = MlflowServer.from_connection(await BaseHook.aget_connection(self.mlflow_conn_id))
                async with httpx.AsyncClient(**client_settings(server)) as client:
                    while True:
                        if new := await bell.new_runs(client, server):
                            yield TriggerEvent({"count": len(new), "training_run_ids": sorted(new)[:IDS_SHOWN]})
                        self._trouble = ""
                        await asyncio.sleep(self.poll_interval_s)
            except TROUBLE as error:
                self._warn(str(error))
            await asyncio.sleep(TROUBLE_S)

    def _warn(self, trouble: str) -> None:
        # Once for each outage: a line for each poll would fill the log of a night.
        if not self._trouble:
            self.log.warning("Cannot look for finished training runs, and goes on trying: %s", trouble)
        self._trouble = trouble
