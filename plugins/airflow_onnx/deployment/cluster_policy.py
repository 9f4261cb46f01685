"""Airflow's cluster policy that sends the heavy tasks of one release where its parameters ask.

`queue`, `pool` and resources are no templates: Airflow takes them from the DAG file, the same for every DAG run. This
hook sees the DAG run's `conf` whenever the record of a task is made, restored or cleared. It runs in the scheduler and
in the API server, inside their transactions: it asks no database, and it raises nothing, which would stop them.

Loaded by the entry point `airflow.policy` of the installed package, or by a line in `airflow_local_settings.py`::

    from airflow_onnx.policy import task_instance_mutation_hook
"""

from __future__ import annotations

import logging
from typing import Any

from airflow import settings as airflow_settings
from airflow.policies import hookimpl

from airflow_onnx.dag_runs import RELEASE_DAG_ID
from airflow_onnx.deployment import placement, settings
from onnx_release.errors import Refused

_log = logging.getLogger(__name__)

# By the class that does it, which is in the record: a DAG file may give the task another name.
_KINDS = {
    "OnnxExportOperator": placement.EXPORT,
    "OnnxTuneOperator": placement.MEASURE,
    "OnnxParityLatencyOperator": placement.MEASURE,
}
_QUEUE_PARAMS = {placement.EXPORT: "export_queue", placement.MEASURE: "measure_queue"}

# Airflow 3.3 leaves the hook out when it makes the records of a new DAG run unless this is False, and sets that only
# where there is an `airflow_local_settings.py`: a hook from an entry point alone would be called for clears only.
airflow_settings.task_instance_mutation_hook.is_noop = False  # type: ignore[attr-defined]


@hookimpl
def task_instance_mutation_hook(task_instance: Any, dag_run: Any) -> None:
    """Send an export on CUDA, and its measuring, to their own place; send either to the queue that the release names.

    :param task_instance: Airflow's record, with the deployment's placement already in it.
    :param dag_run: None while the record is not bound to a DAG run; then it is called again.
    """
    kind = _KINDS.get(task_instance.operator or "")
    conf = getattr(dag_run, "conf", None)
    if kind is None or task_instance.dag_id != RELEASE_DAG_ID or not isinstance(conf, dict):
        return
    try:
        if conf.get("device") == "cuda":
            _put(task_instance, placement.ON_CUDA[kind])
        # The form offers these alone; another got in before the deployment took it from its list.
        if conf.get(_QUEUE_PARAMS[kind]) in settings.queue_choices():
            task_instance.queue = conf[_QUEUE_PARAMS[kind]]
    except Refused as error:
        # The same mistake is an import error of the DAG, where somebody reads it.
        _log.error("%s of %s stays where the DAG puts it: %s", task_instance.task_id, task_instance.run_id, error)


def _put(task_instance: Any, kind: str) -> None:
    """Put what the deployment gives for this kind over what the task has."""
    place = placement.places().get(kind)
    if place is None:
        return
    task_instance.queue = place.queue or task_instance.queue
    task_instance.pool = place.pool or task_instance.pool
    task_instance.pool_slots = place.pool_slots or task_instance.pool_slots
    task_instance.executor = place.executor or task_instance.executor
    if config := placement.executor_config(kind, place):
        task_instance.executor_config = config
