"""Contract of a model with its clients: names, dtypes and fixed dimensions of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Self

from onnx_release.records.artifact import OnnxArtifact
from onnx_release.records.base import Record
from onnx_release.records.tensors import TensorSpec


class Contract(Record):
    """Inputs and outputs of a model. The names of dimensions that vary do not count."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def of_artifact(cls, artifact: OnnxArtifact) -> Self:
        """Return the contract of an exported model."""
        return cls(inputs=artifact.inputs, outputs=artifact.outputs)

    def differences(self, new: Contract) -> list[str]:
        """Return the differences that can break a client of this contract, as phrases about the new contract.

        A fixed dimension of an input may become free, and with a first dimension also the first one of each output:
        every valid call remains valid.
        """
        outputs = {spec.name: spec for spec in new.outputs}
        inputs = {spec.name: spec for spec in new.inputs}
        freed = any(0 in _freed(spec, inputs[spec.name]) for spec in self.inputs if spec.name in inputs)
        found = [*_missing("input", self.inputs, new.inputs), *_missing("output", self.outputs, new.outputs)]
        for spec in self.inputs:
            found += _changes("input", spec, inputs.get(spec.name), may_be_free=range(len(spec.shape)))
        for spec in self.outputs:
            found += _changes("output", spec, outputs.get(spec.name), may_be_free=range(int(freed)))
        before, after = [spec.name for spec in self.outputs], [spec.name for spec in new.outputs]
        # ONNX Runtime returns the outputs as a list.
        if before != after and sorted(before) == sorted(after):
            found.append(f"the outputs are in the order {', '.join(after)}, not {', '.join(before)}")
        return found


def _missing(side: Literal["input", "output"], old: Sequence[TensorSpec], new: Sequence[TensorSpec]) -> Iterator[str]:
    names = [spec.name for spec in new]
    yield from (f"the {side} '{spec.name}' is missing" for spec in old if spec.name not in names)
    names = [spec.name for spec in old]
    yield from (f"the {side} '{spec.name}' is new" for spec in new if spec.name not in names)


def _changes(side: str, old: TensorSpec, new: TensorSpec | None, may_be_free: Sequence[int]) -> list[str]:
    if new is None:
        return []
    found = []
    if old.dtype != new.dtype:
        found.append(f"the {side} '{old.name}' has dtype {new.dtype}, not {old.dtype}")
    old_sizes, new_sizes = ([size if isinstance(size, int) else None for size in one.shape] for one in (old, new))
    allowed = _freed(old, new).intersection(may_be_free)
    if len(old_sizes) != len(new_sizes) or any(
        size != new_sizes[axis] and axis not in allowed for axis, size in enumerate(old_sizes)
    ):
        found.append(f"the {side} '{old.name}' has shape {_shape(new)}, not {_shape(old)}")
    return found


def _freed(old: TensorSpec, new: TensorSpec) -> set[int]:
    """Return the axes that are fixed in the old specification and free in the new one."""
    pairs = enumerate(zip(old.shape, new.shape, strict=False))
    return {axis for axis, (before, after) in pairs if isinstance(before, int) and isinstance(after, str)}


def _shape(spec: TensorSpec) -> str:
    return f"({', '.join(map(str, spec.shape))})"
