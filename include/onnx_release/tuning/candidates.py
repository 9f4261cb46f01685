"""What could be tried on a model, in the order of what it may gain, and what is left out from the start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from onnx_release.limits import CONVOLUTION_SHARE_MIN, OPSET_MAX, PROTO_MAX_BYTES, RUNTIME_DOMAIN, TUNE_OPSETS
from onnx_release.records import OnnxArtifact, Precision
from onnx_release.tuning.graph_rewrites import GraphFacts
from onnx_release.tuning.options import TuneOptions

PLAIN = Precision.EXACT.value

Kind = Literal["session", "fused", "opset", "int8-dynamic", "int8-static", "int8-blockwise", "float16"]
_SIMPLEST_FIRST: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run the model.

    `careful` is the second try of a quantisation; `convolutions` are quantised too. `shares` names the candidate whose
    file it runs, with other session options.
    """

    name: str
    kind: Kind
    precision: Precision
    session_options: dict[str, Any] = field(default_factory=dict)
    opset: int | None = None
    convolutions: bool = False
    careful: bool = False
    shares: str = ""

    @property
    def rank(self) -> tuple[int, int]:
        """How far from the plain export it is, for ties: the more exact first, then the simpler."""
        exactness = tuple(Precision).index(self.precision)
        return exactness, 2 * _SIMPLEST_FIRST.index(self.kind) + 20 * self.careful + bool(self.shares)


PLAIN_EXPORT = Candidate(name=PLAIN, kind="session", precision=Precision.EXACT)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A candidate that is not tried, and why."""

    name: str
    precision: Precision
    reason: str


def plan(
    artifact: OnnxArtifact, facts: GraphFacts, options: TuneOptions, threads: int
) -> Iterator[Candidate | LeftOut]:
    """Yield what to try, the most promising first, and what makes no sense for this model, provider or request.

    Of ONNX Runtime's session options only the number of threads is tried. Measured on the reference model, a session
    without memory arena or memory pattern, other block sizes and denormals set to zero are within 10 % of the
    default, which is the noise, and parallel execution takes 1.3 to 11 times as long. Memory arena and pattern could
    not travel in an MLmodel anyway.
    """
    if "int8" in options.precisions:
        yield from _int8(artifact, facts, options)
    if "float16" in options.precisions:
        yield _float16(artifact)
    if Precision.EXACT in options.precisions:
        yield from _exact(artifact, facts, options, threads)


def with_threads(candidate: Candidate, threads: int) -> Iterator[Candidate]:
    """Yield the candidate with fewer threads than `threads`: one, and half of them, which is one for each core."""
    for count in sorted({1, threads // 2} - {0, threads}, reverse=True):
        yield replace(
            candidate,
            name=f"{candidate.name}-threads{count}",
            session_options={"intra_op_num_threads": count},
            shares=candidate.name,
        )


def _int8(artifact: OnnxArtifact, facts: GraphFacts, options: TuneOptions) -> Iterator[Candidate | LeftOut]:
    unfit = _not_quantisable(artifact)
    products = unfit or ("" if facts.products else "no matrix product has fixed float32 weights")
    own = f"its operator is of ONNX Runtime's own domain '{RUNTIME_DOMAIN}'; allow that by allowed_domains"
    foreign = "" if RUNTIME_DOMAIN in options.allowed_domains else own
    share = facts.convolution_share
    few = f"convolutions hold {share:.0%} of the weights, less than {CONVOLUTION_SHARE_MIN:.0%}"
    convolutions = unfit or ("" if share >= CONVOLUTION_SHARE_MIN else few)
    for candidate, reason in (
        (Candidate(name="int8-dynamic", kind="int8-dynamic", precision=Precision.INT8), products),
        (Candidate(name="int8-blockwise", kind="int8-blockwise", precision=Precision.INT8), products or foreign),
        (Candidate(name="int8-static", kind="int8-static", precision=Precision.INT8), products),
        (
            Candidate(name="int8-static-conv", kind="int8-static", precision=Precision.INT8, convolutions=True),
            convolutions,
        ),
    ):
        yield LeftOut(name=candidate.name, precision=Precision.INT8, reason=reason) if reason else candidate


def _not_quantisable(artifact: OnnxArtifact) -> str:
    if artifact.providers[0] != "CPUExecutionProvider":
        return f"int8 is tried on the CPU alone, and the model is for {artifact.providers[0]}"
    return _too_large(artifact)


def _too_large(artifact: OnnxArtifact) -> str:
    if artifact.size_bytes <= PROTO_MAX_BYTES:
        return ""
    return f"the model has {artifact.size_bytes} bytes, and ONNX Runtime's tools take at most {PROTO_MAX_BYTES}"


def _float16(artifact: OnnxArtifact) -> Candidate | LeftOut:
    reason = _too_large(artifact)
    if artifact.providers[0] == "CPUExecutionProvider":
        reason = "ONNX Runtime on the CPU computes float16 in float32, with casts around every operator"
    if reason:
        return LeftOut(name="float16", precision=Precision.FLOAT16, reason=reason)
    return Candidate(name="float16", kind="float16", precision=Precision.FLOAT16)


def _exact(
    artifact: OnnxArtifact, facts: GraphFacts, options: TuneOptions, threads: int
) -> Iterator[Candidate | LeftOut]:
    if artifact.providers[0] == "CPUExecutionProvider":
        yield from with_threads(PLAIN_EXPORT, threads)
    fused = f"{PLAIN}-fused"
    if facts.scales:
        yield Candidate(name=fused, kind="fused", precision=Precision.EXACT)
    else:
        yield LeftOut(name=fused, precision=Precision.EXACT, reason="no fixed scale follows a linear layer")
    for opset in TUNE_OPSETS:
        yield from _other_opset(artifact, options, opset)


def _other_opset(artifact: OnnxArtifact, options: TuneOptions, opset: int) -> Iterator[Candidate | LeftOut]:
    name = f"{PLAIN}-opset{opset}"
    if opset <= artifact.opset or opset > OPSET_MAX:
        return
    if options.opset is not None:
        yield LeftOut(name=name, precision=Precision.EXACT, reason=f"the release asks for opset {options.opset}")
    elif artifact.trained_format == "torchscript" or artifact.strategy == "torchscript":
        yield LeftOut(name=name, precision=Precision.EXACT, reason="the TorchScript exporter writes no newer one")
    else:
        yield Candidate(name=name, kind="opset", precision=Precision.EXACT, opset=opset)
