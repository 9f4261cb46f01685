"""A LightningModule and its training. The import of Lightning takes seconds, so it has its own file."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.zoo.building import example_tensors
from tests.zoo.entry import Entry


class Forecaster(lightning.LightningModule):
    """A GRU that forecasts the next step; its width is a hyperparameter that the checkpoint keeps."""

    def __init__(self, hidden: int = 24) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.gru = nn.GRU(6, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 6)

    def forward(self, series: Tensor) -> Tensor:
        forecast: Tensor = self.head(self.gru(series)[0])
        return forecast

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        [series] = batch
        return nn.functional.mse_loss(self(series[:, :-1]), series[:, 1:])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def fit(model: Any, entry: Entry, path: Path) -> Path:
    """Train with Lightning's Trainer and save its checkpoint, which also contains optimizer and loops."""
    [series] = example_tensors(entry).values()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=path.parent,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, DataLoader(TensorDataset(series), batch_size=2))
        trainer.save_checkpoint(path)
    return path
