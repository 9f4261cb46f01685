"""Trigger that sends an asset event for finished training runs that were not handled yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowRuntimeError
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_onnx import compat
from airflow_onnx.hooks.mlflow_rest import AsyncMlflowRest
from airflow_onnx.hooks.mlflow_server import MlflowServer
from airflow_onnx.watch.poll import RunPoller
from onnx_release.errors import Refused, Transient
from onnx_release.training_runs.queries import Scope

RETRY_INTERVAL_S = 5.0
IDS_IN_EVENT_MAX = 20
# MLflow fails, its connection is missing or wrong, or Airflow's API fails.
RETRIED = (Refused, Transient, AirflowNotFoundException, AirflowRuntimeError)


class MlflowFinishedRunsTrigger(BaseEventTrigger):
    """Trigger that polls MLflow and fires for each poll that finds new finished runs. It never ends.

    The event only starts a DAG run of the watch, which searches MLflow itself. After a restart of the triggerer
    the same runs may fire again. That DAG run then finds nothing to start.

    :param experiments: patterns of MLflow's experiments.
    :param routed: the patterns of the routes. Runs of other experiments send no event.
    :param run_filter: more conditions in MLflow's filter language, or an empty string.
    :param lookback_h: the longest time that a poll searches, in hours.
    :param poll_interval_s: seconds between two polls.
    """

    def __init__(
        self,
        *,
        experiments: list[str],
        routed: list[str],
        run_filter: str,
        mlflow_conn_id: str,
        lookback_h: float,
        poll_interval_s: float,
    ) -> None:
        super().__init__()
        self.experiments = experiments
        self.routed = routed
        self.run_filter = run_filter
        self.mlflow_conn_id = mlflow_conn_id
        self.lookback_h = lookback_h
        self.poll_interval_s = poll_interval_s
        self._outage = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return class path and arguments; no secret is among them."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "experiments": self.experiments,
                "routed": self.routed,
                "run_filter": self.run_filter,
                "mlflow_conn_id": self.mlflow_conn_id,
                "lookback_h": self.lookback_h,
                "poll_interval_s": self.poll_interval_s,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for ever. After an error the trigger goes on, since nothing would start it again."""
        scope = Scope(experiments=tuple(self.experiments), run_filter=self.run_filter, routed=tuple(self.routed))
        poller = RunPoller(scope, self.lookback_h, compat.asset_state_store(self))
        while True:
            try:
                server = MlflowServer.from_connection(await BaseHook.aget_connection(self.mlflow_conn_id))
                async with AsyncMlflowRest(server) as rest:
                    while True:
                        if new := await poller.new_runs(rest):
                            yield TriggerEvent({"count": len(new), "training_run_ids": sorted(new)[:IDS_IN_EVENT_MAX]})
                        self._outage = False
                        await asyncio.sleep(self.poll_interval_s)
            except RETRIED as error:
                # One line for each outage: a line for each poll would fill the log.
                if not self._outage:
                    self.log.warning("The search for finished training runs failed and is repeated: %s", error)
                self._outage = True
            await asyncio.sleep(RETRY_INTERVAL_S)
