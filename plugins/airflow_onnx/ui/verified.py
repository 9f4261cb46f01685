"""View of the newest verification of a version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from airflow_onnx.ui import numbers
from onnx_release.records.verification import Verification

_RUNTIME_MAX, _REASON_MAX = 50, 500


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedView:
    """A verification for people. Its texts are not trusted.

    :param at: the time; None for any other text.
    """

    version: int
    has_failed: bool
    at: datetime | None
    runtime: str
    reason: str

    @classmethod
    def of(cls, found: Verification | None) -> VerifiedView | None:
        """Return the view, or None for a version that was never verified."""
        if found is None:
            return None
        return cls(
            version=found.version,
            has_failed=found.verdict == "failed",
            at=numbers.moment(found.at),
            runtime=found.runtime[:_RUNTIME_MAX],
            reason=found.reason[:_REASON_MAX],
        )

    @property
    def date(self) -> str:
        """The day in UTC, empty without a time."""
        return f"{self.at:%Y-%m-%d}" if self.at else ""
