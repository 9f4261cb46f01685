"""Records about a verification of a released folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from onnx_release.errors import bounded
from onnx_release.records.base import Record

_DETAIL_MAX_CHARACTERS = 1000
_REASON_MAX_CHARACTERS = 500

CheckVerdict = Literal["passed", "failed", "skipped"]


class VerificationCheck(Record):
    """Result of one check. The detail is one sentence, which may contain texts of the model."""

    name: str
    verdict: CheckVerdict
    detail: Annotated[str, AfterValidator(lambda text: bounded(text, _DETAIL_MAX_CHARACTERS))]


class VerificationReport(Record):
    """Result of all checks of one folder.

    Attributes:
        sha256: The sha256 in the report of the release; None without a usable report.
        runtime: The version of ONNX Runtime that ran the model.
        checks: The checks in their order.
        max_abs: The largest difference from PyTorch's stored outputs; None if no output was compared.
    """

    sha256: str | None
    runtime: str
    checks: tuple[VerificationCheck, ...]
    max_abs: float | None = None

    @property
    def passed(self) -> bool:
        """True if at least one check passed, and none failed."""
        verdicts = {check.verdict for check in self.checks}
        return "passed" in verdicts and "failed" not in verdicts

    @property
    def failed(self) -> tuple[VerificationCheck, ...]:
        """The failed checks."""
        return tuple(check for check in self.checks if check.verdict == "failed")

    @property
    def reason(self) -> str:
        """The failed checks as one text; empty without one."""
        return bounded("; ".join(f"{check.name}: {check.detail}" for check in self.failed), _REASON_MAX_CHARACTERS)
