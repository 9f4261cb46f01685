"""A model that knows something: its heads are fitted to what the backbone, as it is, makes of spectrograms.

Training the 197 M parameters would take longer than all that is measured of them. What a reduced precision costs shows
only in answers that mean something: those of untrained heads lie all together, so that any error is large beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_release.tuning.task_metrics import TARGET

if TYPE_CHECKING:
    from examples.localization import LocalizationNet

# Spectrograms to fit to, and to evaluate on, of which a tuning takes up to 64 for its ranges.
_FITTED_ROWS, _EVALUATED_ROWS = 384, 192
_ROWS_AT_ONCE = 32
_EPOCHS, _LEARNING_RATE, _WEIGHT_DECAY = 60, 3e-3, 0.05


def fit_heads(model: LocalizationNet) -> None:
    """Fit both heads in place, the same at each call on one machine; the backbone stays, and the model in eval mode."""
    import torch
    from torch.nn import functional

    from examples.fit import negative_log_likelihood
    from examples.localization import UNCERTAINTY_MAX, UNCERTAINTY_MIN
    from examples.spectrograms import make_spectrograms

    torch.manual_seed(0)
    inputs, positions = (torch.from_numpy(array) for array in make_spectrograms(_FITTED_ROWS, seed=0))
    with torch.no_grad():
        batches = inputs.split(_ROWS_AT_ONCE)
        features = torch.cat([model.norm(model.backbone(batch).mean(dim=(2, 3))) for batch in batches])
    heads = torch.nn.ModuleList([model.position_head, model.uncertainty_head]).train()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(features)).split(_ROWS_AT_ONCE):
            raw = functional.softplus(model.uncertainty_head(features[rows]))
            outputs = model.position_head(features[rows]), raw.clamp(UNCERTAINTY_MIN, UNCERTAINTY_MAX)
            optimizer.zero_grad()
            negative_log_likelihood(outputs, positions[rows]).backward()
            optimizer.step()
    model.eval()


def save_evaluation(path: Path) -> None:
    """Write spectrograms that no head was fitted to, with their positions, as a training run leaves them."""
    import numpy as np

    from examples.spectrograms import make_spectrograms

    inputs, positions = make_spectrograms(_EVALUATED_ROWS, seed=1)
    # Weights alone do not say what their model's outputs are called.
    arrays: dict[str, Any] = {"mel_spectrogram": inputs, f"{TARGET}output_0": positions}
    np.savez(path, **arrays)
