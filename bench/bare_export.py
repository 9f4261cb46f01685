"""What most people write: ``python -m bench.bare_export SIZE FOLDER`` calls torch's exporter on a model in memory."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from bench.marking import Marked
from bench.models import OUTPUT_NAMES, make
from onnx_release.limits import EXPORT_BATCH_SIZE, MODEL_FILE


def export(model: torch.nn.Module, path: Path) -> None:
    """Export with a batch that may vary, and the names that the release gives."""
    torch.onnx.export(
        model,
        (torch.randn(EXPORT_BATCH_SIZE, 3, 128, 32),),
        path,
        input_names=["mel_spectrogram"],
        output_names=list(OUTPUT_NAMES),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )


def import_exporter() -> None:
    """Import what the release's export has imported before its clock starts, and torch imports when it is called."""
    import onnx  # noqa: F401 - imported before the clock starts, as all here
    import onnx_ir  # noqa: F401 - imported before the clock starts, as all here
    import onnxscript  # noqa: F401 - imported before the clock starts, as all here
    from torch.onnx._internal.exporter import _core, _fx_passes  # noqa: F401 - as above

    from examples import localization  # noqa: F401 - as above


def _main(size: str, folder: str) -> None:
    import_exporter()
    marked = Marked()
    with marked.aside("make_model_s"):
        model = make(size)
    with marked.work():
        export(model, Path(folder, MODEL_FILE))
    marked.report()


if __name__ == "__main__":
    _main(*sys.argv[1:])
