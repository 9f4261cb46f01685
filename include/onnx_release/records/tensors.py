"""Names, dtypes and shapes of tensors."""

from __future__ import annotations

from collections.abc import Mapping

from onnx_release.records.base import Record


class TensorSpec(Record):
    """A named tensor of a model.

    Attributes:
        name: The name of the input or output.
        dtype: The name of numpy's dtype.
        shape: The sizes. A dimension that varies has a name instead of a size. The first varying dimension is
            ``batch`` unless the model has its own names.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def mismatches(self, other: TensorSpec, sizes: Mapping[str, int] | None = None) -> list[str]:
        """Return the differences between this specification and a tensor.

        Names of tensors and of varying dimensions are not compared.

        Args:
            other: Another specification, or the dtype and the shape of an array.
            sizes: None for a specification, in which the same dimensions must vary. For an array: the sizes of varying
                dimensions by name. A varying dimension that is not in it accepts every size.

        Returns:
            One phrase per difference that continues a sentence about `other`, such as ``has dtype float64, not
            float32``; empty when they match.
        """

        def fits(size: int | str, expected: int | str) -> bool:
            if isinstance(expected, int):
                return size == expected
            return isinstance(size, str) if sizes is None else size == sizes.get(expected, size)

        found = []
        if other.dtype != self.dtype:
            found.append(f"has dtype {other.dtype}, not {self.dtype}")
        if len(other.shape) != len(self.shape) or not all(map(fits, other.shape, self.shape)):
            found.append(f"has shape {list(other.shape)}, not {list(self.shape)}")
        return found
