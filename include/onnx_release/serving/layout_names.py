"""Names of the layouts of model servers. The DAG processor checks them, so this file needs no NumPy."""

from __future__ import annotations

from collections.abc import Iterable

from onnx_release.errors import ParameterRefused
from onnx_release.limits import SERVING_LAYOUTS

TRITON, KSERVE = SERVING_LAYOUTS


def require_layouts(names: Iterable[object]) -> tuple[str, ...]:
    """Return the names of layouts in their order. KServe serves ONNX by Triton, so it brings that layout too.

    Raises:
        ParameterRefused: `serving_layouts`, for an unknown name.
    """
    found = set(names)
    if unknown := sorted(map(repr, found - set(SERVING_LAYOUTS))):
        raise ParameterRefused(
            "The parameter 'serving_layouts'",
            f"has {unknown[0]:.80}",
            f"Use {' or '.join(SERVING_LAYOUTS)}.",
            code="serving_layouts",
        )
    return tuple(name for name in SERVING_LAYOUTS if name in found or (name == TRITON and KSERVE in found))
