"""Airflow DAG `serve_radio_onnx`: starts when the alias `candidate` of the model `radio-onnx` moves to a version."""

from __future__ import annotations

import logging

from airflow.sdk import DAG, Asset, task

log = logging.getLogger(__name__)

RELEASED = Asset("models:/radio-onnx@candidate")

with DAG("serve_radio_onnx", schedule=[RELEASED], catchup=False, tags=["onnx"]) as dag:

    @task
    def reload(triggering_asset_events=None):
        """Return the version to serve: its files, its inputs and its figures."""
        # Several releases may end before this DAG run starts. The last event has the present version.
        event = triggering_asset_events[RELEASED][-1].extra
        figures = event["figures"]
        log.info("Version %s of %s: %s times as fast or more", event["version"], event["model"], figures["speedup_low"])
        return {
            "version": event["version"],
            "uri": event["uri"],
            "sha256": event["sha256"],
            "inputs": event["contract"]["inputs"],
            "figures": figures,
        }

    reload()
