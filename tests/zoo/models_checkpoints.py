"""Checkpoints of training scripts: wrappers' names, other dtypes, shared weights, factories with values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.entry import Entry, Exported, RefusedFor, floats, gives, tokens
from tests.zoo.models_tabular import Mlp

_ROW = (floats("row", "batch", 8),)


class Classifier(nn.Module):
    """A batch norm between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 3)

    def forward(self, row: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(row))
        return scores


class TiedLanguageModel(nn.Module):
    """A language model whose head shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.middle = nn.Embedding(200, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 200, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.middle(self.embedding(ids))))
        return logits


class DropRates(nn.Module):
    """Blocks with drop rates that `__init__` reads from a tensor, and anchors in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in self.rates)
        self.anchors = [torch.ones(8), torch.arange(8.0)]

    def forward(self, row: Tensor) -> Tensor:
        for block, rate in zip(self.blocks, self.rates, strict=True):
            row = row + torch.relu(block(row)) * (1 - rate)
        return torch.cat([row * anchor for anchor in self.anchors], 1)


class Lazy(nn.Module):
    """Layers that take their sizes from the first input."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.LazyLinear(16), nn.LazyLinear(3)

    def forward(self, row: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.hidden(row)))
        return scores


class Gain(Mlp):
    """Extra state beside the weights."""

    gain = 1.0

    def get_extra_state(self) -> Any:
        return {"gain": self.gain}

    def set_extra_state(self, state: Any) -> None:
        self.gain = state["gain"]

    def forward(self, row: Tensor) -> Tensor:
        return super().forward(row) * self.gain


def _materialized(model: nn.Module) -> nn.Module:
    model(torch.zeros(2, 8))
    return model


def _with_gain(model: nn.Module) -> nn.Module:
    model.gain = 3.5  # type: ignore[assignment]
    return model


def _checkpoint(name: str, about: str, make: type[nn.Module], **changes: object) -> Entry:
    """Return an entry of weights with one row as input."""
    usual = {"inputs": _ROW, "outputs": (gives("scores", "batch", 3),), "store": "state dict", "field": "checkpoint"}
    given = {"expected": Exported("dynamo"), "described": True} | changes
    return Entry(name=name, about=about, make=make, **(usual | given))  # type: ignore[arg-type]


_TEXT = (tokens("ids", "batch", 6, vocabulary=200),)

ENTRIES = (
    _checkpoint("compiled-in-ddp", "names begin with _orig_mod.module.", Classifier, store="wrapped checkpoint"),
    _checkpoint("half-checkpoint", "float16 weights of a float32 model", Classifier, store="half checkpoint"),
    _checkpoint("tied-head", "head and embedding share a weight", TiedLanguageModel, store="safetensors", inputs=_TEXT,
                outputs=(gives("logits", "batch", 6, 200),)),
    _checkpoint("drop-rates", "the factory reads tensors and keeps a list of them", DropRates,
                outputs=(gives("rows", "batch", 16),)),
    _checkpoint("lazy", "lazy layers", Lazy, steps=0, finish=_materialized),
    _checkpoint("extra-state", "a gain in the extra state", Gain, finish=_with_gain),
    _checkpoint("two-networks", "a generator beside a discriminator", Classifier, store="two networks",
                expected=RefusedFor("several_networks", "generator")),
)  # fmt: skip
