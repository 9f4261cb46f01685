"""Airflow DAG `serve_radio_onnx`: starts when the alias `candidate` of the model `radio-onnx` moves to a version."""

from __future__ import annotations

from airflow.sdk import DAG, Asset, task

RELEASED = Asset("models:/radio-onnx@candidate")

with DAG("serve_radio_onnx", schedule=[RELEASED], catchup=False, tags=["onnx"]) as dag:

    @task
    def reload(triggering_asset_events=None):
        """Return the address of the files to serve, after a check of the speed."""
        # Several releases may end before this DAG run starts. The last event has the present version.
        event = triggering_asset_events[RELEASED][-1].extra
        speedup = event["figures"]["speedup_low"]
        print(f"Version {event['version']} of {event['model']}: {event['uri']}, at least {speedup:.2f}x")
        return {"uri": event["uri"], "sha256": event["sha256"], "inputs": event["contract"]["inputs"]}

    reload()
