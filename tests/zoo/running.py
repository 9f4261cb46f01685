"""The release of one entry: saved, exported, checked and compared with PyTorch, without measurement."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from onnx_release.benchmark.benchmark_model import compare_artifact
from onnx_release.benchmark.setup import BenchmarkOptions
from onnx_release.check.static_checks import CheckOptions, check_artifact
from onnx_release.errors import Refused
from onnx_release.export.export_model import ExportStepOptions, export_trained
from onnx_release.records import OnnxArtifact
from onnx_release.trained.model_factory import FactoryOptions
from tests.zoo.building import build
from tests.zoo.entry import WEIGHT_STORES, Entry, Exported, RefusedFor
from tests.zoo.storing import store

# 1 is often a size that a trace fixes; 5 is unseen during the export.
_BATCH_SIZES = (1, 5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of an entry: the strategy of the export, or the text and the codes of the refusal, or a crash."""

    rung: str = ""
    refusal: str = ""
    codes: tuple[str, ...] = ()
    crash: str = ""
    source: str = ""
    mae: float | None = None
    wall_s: float = 0.0

    def meets(self, expected: Exported | RefusedFor) -> bool:
        """Return True for the expected result."""
        if isinstance(expected, Exported):
            return not self.crash and not self.refusal and self.rung == expected.rung
        return not self.crash and expected.code in self.codes and expected.part in self.refusal

    def __str__(self) -> str:
        refusal = f"refused: {self.refusal}" if self.refusal else ""
        return self.crash or " ".join(filter(None, (self.rung, refusal)))


def release(entry: Entry, folder: Path) -> Outcome:
    """Release one entry, with `folder` for its files; only a refusal is an outcome, any other error is a bug."""
    trained = store(build(entry), entry, folder / "trained")
    began = time.perf_counter()
    options = _options(entry)
    try:
        artifact = export_trained(trained, folder / "onnx", options)
        codes, refusal, mae = _tested(entry, trained, folder / "onnx", artifact)
    except Refused as refused:
        return Outcome(refusal=str(refused), codes=(refused.code,), wall_s=time.perf_counter() - began)
    wall_s = time.perf_counter() - began
    return Outcome(
        rung=artifact.strategy,
        refusal=refusal,
        codes=codes,
        source=artifact.trained_format,
        mae=mae,
        wall_s=wall_s,
    )


def _options(entry: Entry) -> ExportStepOptions:
    factory = FactoryOptions()
    if entry.store in WEIGHT_STORES:
        path = f"{entry.make.__module__}:{entry.make.__qualname__}"
        factory = FactoryOptions(path=path, allowed=("tests.zoo",))
    described = json.dumps([spec.to_dict() for spec in entry.inputs]) if entry.described else None
    # The pickles run only code of the zoo.
    return ExportStepOptions(device="cpu", allow_pickle=True, factory=factory, input_spec=described)


def _tested(
    entry: Entry, trained: Path, folder: Path, artifact: OnnxArtifact
) -> tuple[tuple[str, ...], str, float | None]:
    """Return the codes and the reasons of a refusal, both empty if there is none, and the largest mean difference."""
    checked = check_artifact(folder, artifact, CheckOptions())
    errors = [finding for finding in checked.findings if finding.severity == "error"]
    options = _options(entry)
    judge = BenchmarkOptions(
        batch_sizes=_BATCH_SIZES,
        parity_limits=entry.limits,
        allow_pickle=True,
        factory=options.factory,
        input_spec=options.input_spec,
    )
    parity = compare_artifact(trained, folder, artifact, judge)
    worst = max((found.measures.mae for found in parity.comparisons if found.measures.mae is not None), default=None)
    codes = (*(error.code for error in errors), *(["parity"] if parity.failures else []))
    return codes, "; ".join([*(error.message for error in errors), *parity.failures]), worst
