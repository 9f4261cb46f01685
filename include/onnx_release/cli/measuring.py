"""Limits, inputs and durations of a comparison and a measurement, as arguments of a command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_release.errors import CommandRefused, LatencyRefused, RecordRefused
from onnx_release.limits import BATCH_SIZE_MAX, BATCH_SIZES, LatencyBudget, MeasurePlan, ParityLimits

if TYPE_CHECKING:
    from onnx_release.benchmark.setup import BenchmarkOptions
    from onnx_release.export.export_model import ExportStepOptions

_LIMITS: tuple[type[ParityLimits | LatencyBudget | MeasurePlan], ...] = (ParityLimits, LatencyBudget, MeasurePlan)


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the limits and the options of the measurement."""
    arguments.add_argument(
        "--limit",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a limit as in docs/limits.md, such as mae_max=1e-4, speedup_min=1.2 or measure_max_s=10; may be repeated",
    )
    arguments.add_argument(
        "--batch-sizes", metavar="N,N", default=",".join(map(str, BATCH_SIZES)), help="default: %(default)s"
    )
    arguments.add_argument("--inputs", metavar="NPZ", type=existing_file, help="a file of inputs by name, to test with")
    arguments.add_argument("--lock", metavar="FILE", type=Path, help="lock of this host while times are measured")


def existing_file(text: str) -> Path:
    """Return the path of a file, for the parser."""
    if not (path := Path(text)).is_file():
        raise argparse.ArgumentTypeError(f"{text!r:.200} is not a file")
    return path


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return a reader of whole numbers within limits, for the parser."""

    def read(text: str) -> int:
        number = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(high)) else -1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r:.80} is not a whole number from {low} to {high}")
        return number

    return read


def benchmark_options(arguments: argparse.Namespace, exporting: ExportStepOptions) -> BenchmarkOptions:
    """Return the options of a benchmark.

    Raises:
        CommandRefused: `wrong_argument`.
    """
    from onnx_release.benchmark.setup import BenchmarkOptions
    from onnx_release.latency.host_lock import LockOptions

    parity, budget, plan = given_limits(arguments.limit)
    return BenchmarkOptions(
        batch_sizes=batch_sizes(arguments.batch_sizes),
        parity_limits=parity,
        latency_budget=budget,
        measure_plan=plan,
        allow_pickle=exporting.allow_pickle,
        factory=exporting.factory,
        input_spec=exporting.input_spec,
        inputs_path=str(arguments.inputs.resolve()) if arguments.inputs else None,
        lock=LockOptions(path=str(arguments.lock.resolve()) if arguments.lock else None, holder="onnx-release"),
    )


def given_limits(texts: list[str]) -> tuple[ParityLimits, LatencyBudget, MeasurePlan]:
    """Return the limits with the changes of ``--limit``.

    Args:
        texts: Each is ``NAME=VALUE``, with a value in JSON, or a word.
    """
    from onnx_release.latency.evaluate import require_valid_latency_options

    fields: dict[str, dict[str, Any]] = {record.__name__: {} for record in _LIMITS}
    for text in texts:
        name, equals, value = text.partition("=")
        record = next((one for one in _LIMITS if name in one.model_fields), None)
        if record is None or not equals:
            names = [name for one in _LIMITS for name in one.model_fields]
            near = get_close_matches(name, names, 1) or [", ".join(names)]
            raise wrong_argument("--limit", f"is {text!r:.200}, which is not NAME=VALUE of a limit", f"Use {near[0]}.")
        try:
            fields[record.__name__][name] = json.loads(value)
        except ValueError:
            fields[record.__name__][name] = value
    parity, budget, plan = (fields[record.__name__] for record in _LIMITS)
    try:
        found = ParityLimits.from_dict(parity), LatencyBudget.from_dict(budget), MeasurePlan.from_dict(plan)
        require_valid_latency_options(found[1], found[2])
    except (RecordRefused, LatencyRefused) as error:
        raise wrong_argument("--limit", f"cannot be used: {error.subject} {error.problem}", "Correct it.") from error
    return found


def batch_sizes(text: str) -> tuple[int, ...]:
    """Return the batch sizes of a text such as ``1,8``."""
    parts = [part.strip() for part in text.split(",")]
    sizes = [int(part) if part.isascii() and part.isdigit() else 0 for part in parts]
    if not all(1 <= size <= BATCH_SIZE_MAX for size in sizes):
        raise wrong_argument(
            "--batch-sizes", f"is {text!r:.80}", f"Give numbers from 1 to {BATCH_SIZE_MAX}, such as 1,8,32."
        )
    return tuple(sizes)


def wrong_argument(argument: str, problem: str, action: str) -> CommandRefused:
    """Return the refusal of an argument of the command line."""
    return CommandRefused(f"The argument {argument}", problem, action, code="wrong_argument")
