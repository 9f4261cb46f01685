"""Runners of a model: named arrays in, named arrays out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from onnx_release.trained.arrays import Arrays


class Runner(Protocol):
    """A context manager that runs a model while it is open."""

    @property
    def name(self) -> str:
        """Return the name of the library for messages."""

    def run(self, inputs: Arrays) -> Arrays:
        """Run the model and wait for its result.

        Args:
            inputs: One array per input, in the dtypes of the model.

        Returns:
            Every output by name, in the memory of the host.

        Raises:
            Refused: The model fails on these inputs.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...
