"""Asset of a model and alias: ``models:/<model>@<alias>``. It gets an event at each promotion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetAlias

from airflow_onnx import validation
from airflow_onnx.events.figures import Figures
from onnx_release.records import Contract, ModelVersion, ReleaseReport
from onnx_release.training_runs.names import validate_model_name

if TYPE_CHECKING:
    from airflow.sdk import Context

# The outlet of a task that moves aliases. It resolves to the asset of each model and alias.
RELEASED_VERSIONS = AssetAlias("onnx_released_versions")


# The outlet of the teardown, which stands for the other outlets of a promotion that it records. An asset itself would
# get an event at each end of the teardown, also after a failure.
RECORDED_PROMOTIONS = AssetAlias("onnx_recorded_promotions")


def model_asset(model_name: str, alias: str) -> Asset:
    """Return the asset of a model and alias, for the `schedule` of a DAG.

    Args:
        model_name: The name of the registered model.
        alias: The alias whose moves are events of the asset.

    Raises:
        ParameterRefused: The model name or the alias is not valid.
    """
    return Asset(f"models:/{validate_model_name(model_name)}@{validation.validate_alias(alias)}")


def add_event(
    context: Context,
    outlets: Iterable[Any],
    version: ModelVersion,
    contract: Contract,
    figures: Figures,
) -> None:
    """Add an event of the asset of a promoted version. Airflow stores it when the task succeeds.

    Each `AssetAlias` among the outlets gets the event. A version without an alias has no event.

    :param outlets: the outlets of the task, for example `RELEASED_VERSIONS`.
    :param version: the version with the alias that moved to it.
    """
    if version.alias is None:
        return
    extra: dict[str, Any] = {
        "model": version.name,
        "alias": version.alias,
        "version": version.version,
        "sha256": version.sha256,
        "uri": version.source,
        "training_run_id": version.training_run_id,
        "contract": contract.to_dict(),
        "figures": figures.to_dict(),
    }
    for outlet in outlets:
        if isinstance(outlet, AssetAlias):
            context["outlet_events"][outlet].add(model_asset(version.name, version.alias), extra=extra)


def add_events_of_recorded(
    context: Context, outlets: Iterable[Any], version: ModelVersion, report: ReleaseReport
) -> None:
    """Add the events of a promotion to the teardown that records it, as if the promotion had succeeded.

    :param outlets: the outlets of the promotion.
    :param version: the version, with all its aliases.
    :param report: its report.
    """
    if report.artifact is None:
        return
    outlets = list(outlets)
    contract, figures = Contract.of_artifact(report.artifact), Figures.of_report(report)
    for alias in (version.alias or "").split(", "):
        add_event(context, outlets, version.replace(alias=alias or None), contract, figures)
    for outlet in outlets:
        if isinstance(outlet, Asset):
            context["outlet_events"][RECORDED_PROMOTIONS].add(outlet)
