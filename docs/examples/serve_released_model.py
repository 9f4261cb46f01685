"""Airflow DAG `serve_radio_onnx`: starts when the alias `candidate` of the model `radio-onnx` moves to a version."""

from __future__ import annotations

import logging

from airflow.sdk import DAG, Asset, task

log = logging.getLogger(__name__)

RELEASED = Asset("models:/radio-onnx@candidate")

with DAG("serve_radio_onnx", schedule=[RELEASED], catchup=False, tags=["onnx"]) as dag:

    @task
    def reload(triggering_asset_events=None):
        """Return the address of the files to serve."""
        # Several releases may end before this DAG run starts. The last event has the present version.
        event = triggering_asset_events[RELEASED][-1].extra
        speedup = event["figures"]["speedup_low"]
        log.info("Version %s of %s, at least %.2fx as fast", event["version"], event["model"], speedup)
        return {"uri": event["uri"], "sha256": event["sha256"], "inputs": event["contract"]["inputs"]}

    reload()
