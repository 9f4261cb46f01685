"""Champion of a release: the version that has the alias of production, with its files for the measurement."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx.tracking import model_registry, version_files
from airflow_onnx.tracking.promotion import Candidate, Promoter
from onnx_release.errors import Refused
from onnx_release.text import shorten
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from onnx_release.benchmark.setup import ChampionOptions

log = logging.getLogger(__name__)


def find_champion(
    promoter: Promoter, candidate: Candidate, alias: str, sha256: str, folder: Path, buckets: Collection[str]
) -> ChampionOptions | None:
    """Download the champion and verify its sha256.

    A champion that cannot be measured is returned with the problem: its version still decides.

    :param sha256: the candidate's.
    :param folder: an empty folder for the champion's files.
    :param buckets: the buckets that the champion may be in.
    :return: None if no version has the alias, or if the alias would not move to the candidate.
    :raises TrackingRefused: ``contract_change`` if the champion has other inputs or outputs.
    """
    from onnx_release.benchmark.setup import ChampionOptions

    holder = model_registry.alias_holder(promoter.hook, candidate.model_name, alias)
    if holder is None:
        log.info("No version has the alias '%s': the model has no champion to compare with.", alias)
        return None
    move = promoter.alias_move(candidate, alias)
    if move.stays or _is_candidate(holder, candidate, sha256):
        log.info("%s.", move.stays or f"Version {holder.version}, the champion, has the same bytes")
        return None
    version = int(holder.version)
    if move.differences:
        return ChampionOptions(alias=alias, version=version, problem="; ".join(move.differences))
    try:
        artifact, report = version_files.fetch_version(promoter.s3_conn_id, holder, folder, buckets)
    except Refused as refusal:
        return ChampionOptions(alias=alias, version=version, problem=shorten(refusal))
    log.info("Version %d, the champion, was downloaded and has its sha256 %s.", version, artifact.sha256)
    parity = report.benchmark.parity.worst_per_output() if report.benchmark else {}
    return ChampionOptions(alias=alias, version=version, folder=str(folder), artifact=artifact, parity=parity)


def _is_candidate(holder: Any, candidate: Candidate, sha256: str) -> bool:
    """Return True for a version of an earlier release of the same bytes of the same training run."""
    return bool(holder.run_id == candidate.training_run_id and holder.tags.get(tags.VERSION_SHA256) == sha256)
