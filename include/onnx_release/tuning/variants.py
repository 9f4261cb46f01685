"""Variants of an exported model that a tuning can try, in order of their expected gain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from onnx_release.limits import CONVOLUTION_SHARE_MIN, OPSET_MAX, PROTO_MAX_BYTES, RUNTIME_DOMAIN, TUNE_OPSETS
from onnx_release.records import OnnxArtifact, Precision
from onnx_release.tuning.graph_rewrites import GraphFacts
from onnx_release.tuning.options import TuneOptions

Kind = Literal["session", "fused", "opset", "int8-dynamic", "int8-static", "int8-blockwise", "float16"]
"""Ways to build a variant, the simplest first; ``session`` is the plain export's file with other session options."""

_SIMPLEST_FIRST: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to build and run the model.

    `careful` is the second, more exact try of a quantization. `convolutions`: they are quantized too. `file_of` is the
    name of the variant whose file this one runs with other session options; None: its own file.
    """

    name: str
    kind: Kind
    precision: Precision
    session_options: dict[str, Any] = field(default_factory=dict)
    opset: int | None = None
    convolutions: bool = False
    careful: bool = False
    file_of: str | None = None

    @property
    def has_own_file(self) -> bool:
        """True if the variant is built, and does not run a file that exists."""
        return self.kind != "session" and self.file_of is None

    @property
    def rank(self) -> tuple[int, int]:
        """Order among equally fast variants: the more exact first, then the simpler."""
        exactness = tuple(Precision).index(self.precision)
        return exactness, 2 * _SIMPLEST_FIRST.index(self.kind) + 20 * self.careful + (self.file_of is not None)


PLAIN_EXPORT = Variant(name=Precision.EXACT.value, kind="session", precision=Precision.EXACT)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedVariant:
    """A variant that is not built, with the reason."""

    name: str
    precision: Precision
    reason: str


def plan_variants(
    artifact: OnnxArtifact, facts: GraphFacts, options: TuneOptions, threads: int
) -> Iterator[Variant | SkippedVariant]:
    """Yield the variants to try, the most promising first, and those that do not fit the model or the options.

    The number of threads is the only session option that is tried. On the reference model, a session without memory
    arena or memory pattern, other block sizes and denormals set to zero were within 10 % of the default, which is the
    noise. Parallel execution took 1.3 to 11 times as long. An MLmodel cannot contain memory arena and pattern.

    Args:
        artifact: the exported model.
        facts: the properties of its graph.
        options: the precisions and operator domains that are allowed.
        threads: the number of threads of the plain export.
    """
    on_cpu = artifact.providers[0] == "CPUExecutionProvider"
    too_large = None
    if artifact.size_bytes > PROTO_MAX_BYTES:
        too_large = f"the model has {artifact.size_bytes} bytes; ONNX Runtime's tools accept at most {PROTO_MAX_BYTES}"
    if Precision.INT8 in options.precisions:
        cpu_only = None if on_cpu else f"int8 is only tried on the CPU, and the model is for {artifact.providers[0]}"
        yield from _int8_variants(facts, options, cpu_only or too_large)
    if Precision.FLOAT16 in options.precisions:
        slow = "ONNX Runtime on the CPU computes float16 in float32, with casts around every operator"
        variant = Variant(name="float16", kind="float16", precision=Precision.FLOAT16)
        yield _unless(slow if on_cpu else too_large, variant)
    if Precision.EXACT in options.precisions:
        if on_cpu:
            yield from with_fewer_threads(PLAIN_EXPORT, threads)
        fused = Variant(name=f"{PLAIN_EXPORT.name}-fused", kind="fused", precision=Precision.EXACT)
        yield _unless(None if facts.scales else "no constant scale follows a linear layer", fused)
        for opset in TUNE_OPSETS:
            if artifact.opset < opset <= OPSET_MAX:
                yield _other_opset(artifact, options, opset)


def with_fewer_threads(variant: Variant, threads: int) -> Iterator[Variant]:
    """Yield the variant with half of `threads` (often one per core) and with one thread."""
    for count in sorted({1, threads // 2} - {0, threads}, reverse=True):
        yield replace(
            variant,
            name=f"{variant.name}-threads{count}",
            session_options={"intra_op_num_threads": count},
            file_of=variant.name,
        )


def _int8_variants(facts: GraphFacts, options: TuneOptions, unfit: str | None) -> Iterator[Variant | SkippedVariant]:
    products = unfit or (None if facts.products else "no matrix product has constant float32 weights")
    foreign = None
    if RUNTIME_DOMAIN not in options.allowed_domains:
        foreign = f"its operator is in ONNX Runtime's own domain '{RUNTIME_DOMAIN}'; add it to allowed_domains"
    few = None
    if facts.convolution_share < CONVOLUTION_SHARE_MIN:
        few = f"convolutions have {facts.convolution_share:.0%} of the weights, less than {CONVOLUTION_SHARE_MIN:.0%}"
    dynamic = Variant(name="int8-dynamic", kind="int8-dynamic", precision=Precision.INT8)
    static = Variant(name="int8-static", kind="int8-static", precision=Precision.INT8)
    yield _unless(products, dynamic)
    yield _unless(products or foreign, replace(dynamic, name="int8-blockwise", kind="int8-blockwise"))
    yield _unless(products, static)
    yield _unless(unfit or few, replace(static, name="int8-static-conv", convolutions=True))


def _other_opset(artifact: OnnxArtifact, options: TuneOptions, opset: int) -> Variant | SkippedVariant:
    reason = None
    if options.opset is not None:
        reason = f"the release requires opset {options.opset}"
    elif artifact.trained_format == "torchscript" or artifact.strategy == "torchscript":
        reason = "the TorchScript exporter writes no newer opset"
    name = f"{PLAIN_EXPORT.name}-opset{opset}"
    return _unless(reason, Variant(name=name, kind="opset", precision=Precision.EXACT, opset=opset))


def _unless(reason: str | None, variant: Variant) -> Variant | SkippedVariant:
    """Return the variant, or skip it for this reason."""
    if reason is None:
        return variant
    return SkippedVariant(name=variant.name, precision=variant.precision, reason=reason)
