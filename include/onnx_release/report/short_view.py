"""Parts of a report that a short view shows: its state, the closest gates, the failed comparisons first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from onnx_release.records import Gate, Measures, OutputParity, ReleaseReport
from onnx_release.report.gates import is_warning
from onnx_release.report.plots import gate_bar

# A table with more gates shows the failed ones and the closest of each kind first.
_GATES_SHOWN_MAX = 14
_FAILED_SHOWN_MAX = 20


def release_state(report: ReleaseReport) -> str:
    """Return the state of a release for people."""
    if report.status == "refused":
        return "refused"
    return "released with a warning" if is_warning(report) else "released"


def has_more_reasons(report: ReleaseReport) -> bool:
    """Return True if the reasons have more than the headline and the next step."""
    shown = f"{report.headline} {report.next_step}".replace("Refused: ", "", 1).casefold()
    return [" ".join(reason.replace("`", "'").split()).casefold() for reason in report.reasons] not in ([], [shown])


def closest_gates(gates: Sequence[Gate]) -> list[Gate]:
    """Return the gates of a short table, those that did not pass first.

    Of many gates these are the failed ones and the closest of each name.
    """
    gates = sorted(gates, key=lambda gate: gate.verdict in ("passed", "not measured"))
    if len(gates) <= _GATES_SHOWN_MAX:
        return gates
    failed = [gate for gate in gates if gate.verdict != "passed"]
    closest: dict[str, Gate] = {}
    for gate in gates:
        if gate.verdict == "passed" and _use(gate) > _use(closest.get(gate.name)):
            closest[gate.name] = gate
    shown = {id(gate) for gate in (*failed[:_FAILED_SHOWN_MAX], *closest.values())}
    return [gate for gate in gates if id(gate) in shown]


def _use(gate: Gate | None) -> float:
    """Return the used part of a gate's limit; a gate without a bar uses none of it."""
    if gate is None:
        return -1.0
    bar = gate_bar(gate)
    if bar is None:
        return 0.0
    return 1.0 - bar.high if gate.sense == "at least" else bar.high


def worst_first(comparisons: Sequence[OutputParity]) -> list[OutputParity]:
    """Return the comparisons, the failed ones first, each kind in its order."""
    return sorted(comparisons, key=lambda comparison: (comparison.passed, not comparison.decides))


def used_measures(names: Iterable[str], per_output: Mapping[str, Measures]) -> list[str]:
    """Return the names of the measures that at least one output has."""
    return [name for name in names if any(getattr(worst, name) is not None for worst in per_output.values())]
