"""Record of a retirement on the training run of the version."""

from __future__ import annotations

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.leftovers import names
from airflow_onnx.retirement.journal import Begun
from airflow_onnx.tracking import run_description
from airflow_onnx.tracking.run_description import Result
from onnx_release.records.artifact import Precision
from onnx_release.training_runs import tags

# Nothing of these exists any more.
_OF_A_VERSION = (tags.VERSION, tags.ALIAS, tags.ALIAS_NOTE, tags.S3_URI, tags.VERIFICATION)


def record(rest: MlflowRest, model: str, version: int, begun: Begun) -> str:
    """Set the tags of the training run, and its state if the version was its current release.

    A record that MLflow refuses does not stop the retirement.

    :return: the reason why the run has no record. Empty if it has one.
    """
    run = names.training_run(rest, begun.run_id)
    if run is None or run.deleted:
        return f"its training run was deleted{' permanently' if run is None else ''}, and has no record of it"
    precision = begun.precision or str(Precision.EXACT)
    of_precision = "" if precision == Precision.EXACT else precision
    text = f"version {version} of {model} at {begun.at} by {begun.by}: {begun.why}"
    found = {_name(tags.RETIRED, of_precision): text + (f" ({begun.dag_run})" if begun.dag_run else "")}
    for reduced in {"", of_precision}:
        is_current = run.tags.get(tags.REGISTERED_MODEL) == model
        if not is_current or run.tags.get(_name(tags.VERSION, reduced)) != str(version):
            continue
        found |= {name: "" for tag in _OF_A_VERSION if (name := _name(tag, reduced)) in run.tags}
        if not reduced:
            headline = f"Retired: version {version} of {model}, by {begun.by}: {begun.why}"
            found |= {tags.STATUS: "retired", tags.HEADLINE: headline}
    shortened = tags.shortened(found)
    if headline := found.get(tags.HEADLINE, ""):
        before = run.tags.get(run_description.TAG, "")
        shortened[run_description.TAG] = run_description.described(before, Result(headline=headline), is_current=True)
    try:
        rest.set_tags(begun.run_id, shortened)
    except TrackingRefused as refusal:
        return f"its training run has no record of it: {refusal}"
    return ""


def _name(tag: str, precision: str) -> str:
    return tags.of_precision(tag, precision) if precision else tag
