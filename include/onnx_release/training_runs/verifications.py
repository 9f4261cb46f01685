"""Results of verifications of a released version, as the tags of the version and of its training run have them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

from onnx_release.errors import Refused
from onnx_release.records.verification import Verification
from onnx_release.text import shorten
from onnx_release.training_runs import tags

log = logging.getLogger(__name__)

CHANGES_MAX = 10
"""Changes of the verdict that are kept for each version."""
# MLflow servers differ in the size of a tag; this one fits all of them, in bytes too.
_TEXT_MAX_BYTES = 4000


def of_version(version: int, version_tags: Mapping[str, str]) -> Verification | None:
    """Return the newest result in the tags of a version, or None for a version that was never verified."""
    try:
        return Verification.from_dict(
            {
                "version": version,
                "verdict": version_tags.get(tags.VERSION_VERIFIED, ""),
                "at": version_tags.get(tags.VERSION_VERIFIED_AT, ""),
                "runtime": version_tags.get(tags.VERSION_VERIFIED_RUNTIME, ""),
                "reason": version_tags.get(tags.VERSION_VERIFIED_REASON, ""),
            }
        )
    except Refused:
        return None


def of_run(run_tags: Mapping[str, str]) -> Verification | None:
    """Return the newest result in the tags of a training run. A text that a person damaged is none."""
    found = _read(run_tags.get(tags.VERIFICATION, ""))
    return found[0] if found else None


def changes_in(version_tags: Mapping[str, str]) -> list[Verification]:
    """Return the changes of the verdict in the tags of a version, the newest last."""
    return _read(version_tags.get(tags.VERSION_VERIFICATION_LOG, ""))


def text_of(result: Verification) -> str:
    """Return the text of one result."""
    return json.dumps(result.to_dict(), ensure_ascii=False)


def changes_text(changes: Sequence[Verification]) -> str:
    """Return the text of the newest changes that fit into a tag."""
    kept = list(changes[-CHANGES_MAX:])
    while True:
        text = json.dumps([one.to_dict() for one in kept], ensure_ascii=False)
        if len(text.encode()) <= _TEXT_MAX_BYTES or len(kept) == 1:
            return text
        del kept[0]


def _read(text: str) -> list[Verification]:
    if not text:
        return []
    try:
        rows = json.loads(text)
        return [Verification.from_dict(row) for row in (rows if isinstance(rows, list) else [rows])]
    except (ValueError, TypeError, RecursionError, Refused) as error:
        log.warning("A tag is not the result of a verification: %s", shorten(error))
        return []
