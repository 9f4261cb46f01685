"""Construction of an entry's model, with weights of a short training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.entry import Entry

_SEED = 7
_LEARNING_RATE = 1e-2


def build(entry: Entry) -> nn.Module:
    """Make and train the entry's model, in the entry's mode. The weights are reproducible."""
    with torch.random.fork_rng():
        torch.manual_seed(_SEED)
        model = entry.make()
        if entry.steps:
            _train(model, entry)
    if entry.finish is not None:
        model = entry.finish(model)
    return model.train(entry.mode == "train")


def example_tensors(entry: Entry) -> dict[str, Tensor]:
    """Return the entry's example as tensors."""
    return {name: torch.from_numpy(array) for name, array in entry.example().items()}


def call(model: nn.Module, entry: Entry, inputs: Mapping[str, Tensor]) -> Any:
    """Call the model with the form of arguments that its `forward` takes."""
    if entry.call == "by name":
        return model(**inputs)
    return model(dict(inputs)) if entry.call == "one dict" else model(*inputs.values())


def _train(model: nn.Module, entry: Entry) -> None:
    """Fit every output to noise in training mode, which changes weights and running statistics."""
    # The parameters are float32 here; a cast to another dtype follows the training.
    inputs = {n: x.float() if x.is_floating_point() else x for n, x in example_tensors(entry).items()}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=_LEARNING_RATE)
    model.train()
    for _ in range(entry.steps):
        losses = [(leaf - torch.randn_like(leaf)).square().mean() for leaf in _learnable(call(model, entry, inputs))]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()


def _learnable(result: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested result that have a gradient."""
    if isinstance(result, Tensor):
        if result.requires_grad and result.is_floating_point():
            yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from _learnable(value)
    elif isinstance(result, list | tuple):
        for value in result:
            yield from _learnable(value)
