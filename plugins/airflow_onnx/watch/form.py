"""Fields of the trigger form of the watch, and so its parameters over Airflow's API."""

from __future__ import annotations

from typing import Any

from airflow.sdk import Param

from airflow_onnx import defaults
from airflow_onnx.deployment import settings
from airflow_onnx.params import field
from airflow_onnx.watch.routes import routes_param

# As in `release_params`, the form opens only the section with the first name.
_RUNS, _MORE = "Run Parameters", "Experts: the search and the releases"


def watch_params(routes: list[Any]) -> dict[str, Param]:
    """Return the parameters of the watch by name, in the order of the form.

    :param routes: the default of the field with the routes.
    """
    return {
        "dry_run": field(
            False, "boolean", _RUNS, "Dry run",
            "Start nothing. List the decision about each run, and the estimated duration.",
        ),
        "since": field(
            None, "string", _RUNS, "Ended since",
            "For old runs: those that ended at this time or later. Empty: new runs within the lookback.",
            format="date-time",
        ),
        "until": field(
            None, "string", _RUNS, "Ended before", "The end of that range, exclusive. Empty: now.", format="date-time"
        ),
        "experiments": field(
            settings.watch_experiments(), "array", _RUNS, "Experiments",
            "Names, ids or patterns such as radio-*, one a line; * for all. Empty: none. The option [onnx_release] "
            "watch_experiments sets the default.",
            may_be_empty=True, items={"type": "string", "minLength": 1},
        ),
        "run_filter": field(
            settings.watch_filter() or None, "string", _RUNS, "Filter",
            "More conditions in MLflow's filter language, for example metrics.val_mae < 0.2 or tags.team = 'radio'.",
            may_be_empty=True,
        ),
        "lookback_h": field(
            defaults.WATCH_LOOKBACK_H, "number", _MORE, "Lookback (hours)",
            "The search for new runs goes back this far. It finds runs that were reported late or by a wrong clock.",
            exclusiveMinimum=0, maximum=24 * 366,
        ),
        "order": field(
            "oldest", "string", _MORE, "Order", "The runs of a range that come first.", enum=["oldest", "newest"]
        ),
        "at_once": field(
            defaults.RELEASES_AT_ONCE, "integer", _MORE, "Releases at the same time",
            "For the runs of a range. Each interval of a backfill has this many. While a new run is released, none of "
            "these starts.", minimum=1, maximum=defaults.RELEASES_AT_ONCE_MAX,
        ),
        "routes": routes_param(routes, _MORE),
        "mlflow_conn_id": field(
            defaults.MLFLOW_CONN_ID, "string", _MORE, "MLflow connection", "Of type mlflow.", minLength=1
        ),
    }  # fmt: skip
