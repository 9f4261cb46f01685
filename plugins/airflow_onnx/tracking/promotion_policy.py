"""Policy of a release: the aliases that move at its end, and those that need the approval of a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from airflow_onnx import defaults, validation
from airflow_onnx.deployment import settings
from onnx_release.errors import ParameterRefused
from onnx_release.records import Precision, ReleaseReport
from onnx_release.records.base import Record

if TYPE_CHECKING:
    from airflow_onnx.tracking.promotion import Move

Policy = Literal["candidate", "auto", "approve"]


class PromotionPolicy(Record):
    """Aliases of a release and the condition of their moves.

    Attributes:
        promotion: ``candidate`` moves only the first alias. ``auto`` moves both if the model is not worse than the
            champion. ``approve`` moves both if a person approves.
        alias: The first alias.
        champion_alias: The alias of the champion, the version in production.
    """

    promotion: Policy = "candidate"
    alias: str
    champion_alias: str = defaults.CHAMPION_ALIAS

    @classmethod
    def read(cls, arguments: dict[str, Any]) -> Self:
        """Build the policy from templated texts. An empty text leaves a field at its default.

        :raises RecordRefused: for an unknown policy.
        """
        return cls.from_dict({name: text for name, text in arguments.items() if text != ""})

    def aliases(self, precision: Precision | str) -> tuple[str, ...]:
        """Return the aliases that a release of this precision moves, the champion's last.

        :raises ParameterRefused: for an alias that is not valid, or two equal aliases.
        """
        champion = self.champion(precision)
        return (validation.alias_for(self.alias, precision), *([champion] if champion else []))

    def champion(self, precision: Precision | str) -> str | None:
        """Return the alias of the champion, None if the policy does not move it."""
        if self.promotion == "candidate":
            return None
        if self.champion_alias == self.alias:
            raise ParameterRefused(
                "The parameter 'champion_alias'",
                f"is {self.champion_alias!r:.80}, as the parameter 'alias'",
                "Choose two aliases, or set promotion to candidate.",
                code="same_alias",
            )
        return validation.alias_for(self.champion_alias, precision)

    def reasons(self, alias: str, move: Move, report: ReleaseReport) -> list[str]:
        """Return the reasons why a person must approve a move; a move without a reason needs no approval."""
        return [] if move.stays or move.is_there else self.approval_reasons(alias, report)

    def approval_reasons(self, alias: str, report: ReleaseReport) -> list[str]:
        """Return the reasons why a person must approve each move of an alias."""
        found = []
        if settings.is_protected(alias):
            found.append(f"the alias {alias} is protected")
        if self.promotion == "approve" and alias in {self.champion(precision) for precision in Precision}:
            found.append("the parameter promotion is approve")
        latency = report.benchmark.latency if report.benchmark else None
        if latency is not None and latency.budget.get("on_miss") == "ask":
            of_speed = ("speedup", "p95_ms", "champion_speed")
            verdicts = {gate.verdict for gate in report.gates if gate.name in of_speed} - {"passed"}
            if verdicts or latency.verdict != "passed":
                settled = "is not settled" if "not settled" in verdicts else "misses a limit"
                found.append(f"the speed {settled}, and the parameter on_miss is ask")
        return found
