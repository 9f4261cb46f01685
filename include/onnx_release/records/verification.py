"""Records about a verification of a released folder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from onnx_release.records.base import Record
from onnx_release.text import bounded

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


class Verification(Record):
    """Result of a verification of one version, for its tags and for the pages. Its texts are not trusted.

    Attributes:
        version: The number of the version.
        verdict: The verdict.
        at: The time in UTC, ISO 8601.
        runtime: The version of ONNX Runtime.
        reason: The failed checks, empty without one.
        dag_run: The id of the DAG run.
    """

    version: int
    verdict: Literal["passed", "failed"]
    at: str
    runtime: str
    reason: str = ""
    dag_run: str = ""


class VersionResult(Record):
    """Result for one version in one DAG run of the verification.

    Attributes:
        model: The registered model.
        version: The number of the version.
        aliases: The aliases that held it when the DAG run began.
        outcome: The verdict; ``not verified`` if a server or the worker prevented the verification.
        reason: The failed checks, or the reason why there is no verdict.
        runtime: The version of ONNX Runtime, empty without a verdict.
        max_abs: The largest difference from PyTorch's stored outputs.
        is_news: True if this DAG run has changed the verdict of the version, or given its first one and it failed.
        latency: The latency beside the recorded one, as a sentence; empty if it was not measured.
    """

    model: str
    version: int
    aliases: tuple[str, ...] = ()
    outcome: Literal["passed", "failed", "not verified"]
    reason: str = ""
    runtime: str = ""
    max_abs: float | None = None
    is_news: bool = False
    latency: str = ""


class RollBack(Record):
    """Move of an alias away from a failed version, or the reason why it stays.

    Attributes:
        model: The registered model.
        alias: The alias.
        from_version: The failed version.
        to_version: The version that held the alias before; None if the alias log has none.
        moved: True if the alias is at `to_version` now.
        reason: The reason why it stays.
    """

    model: str
    alias: str
    from_version: int
    to_version: int | None = None
    moved: bool = False
    reason: str = ""

    @property
    def sentence(self) -> str:
        """The result as a sentence."""
        subject = f"The alias '{self.alias}' of {self.model}"
        if self.moved:
            return f"{subject} went back from version {self.from_version} to version {self.to_version}."
        return f"{subject} stays at version {self.from_version}: {self.reason}."
