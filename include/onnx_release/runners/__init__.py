"""The two sides of a comparison behind one protocol: arrays by name in, arrays by name out."""

from __future__ import annotations

from typing import Protocol, Self

from onnx_release.trained.arrays import Arrays


class Runner(Protocol):
    """Something that runs a model; a context manager, which holds what it needs between ``with`` and its end."""

    @property
    def name(self) -> str:
        """What to call this side in a message."""

    def run(self, inputs: Arrays) -> Arrays:
        """Return every output by name, computed and in the host's memory; raises `Refused` when the model cannot."""

    def close(self) -> None:
        """Free the model and put back every process-wide setting; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...
