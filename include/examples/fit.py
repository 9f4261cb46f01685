"""Training loop with a time limit: AdamW, Gaussian negative log-likelihood, new data in each epoch."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from examples.spectrograms import make_spectrograms

WARMUP_FRACTION = 0.1
GRADIENT_NORM_MAX = 5.0
# The seed of an epoch is the run's seed plus the number of the epoch. The offset keeps validation data apart.
VALIDATION_SEED_OFFSET = 1_000_003


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """Options of the training.

    Training ends after the first epoch that passes both `seconds` and `epochs_min`. With ``seconds=0``, `epochs_min`
    is the number of epochs, and the learning rate does not depend on the speed of the machine.
    """

    seconds: float = 60.0
    epochs_min: int = 1
    seed: int = 7
    batch_size: int = 32
    samples_per_epoch: int = 128
    validation_samples: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Metrics of one epoch: likelihoods in nats per coordinate, errors in the unit of the positions (100 m).

    `val_mae_baseline` is the error of a constant prediction, the mean of the training positions.
    """

    number: int
    train_nll: float
    val_nll: float
    val_mae: float
    val_mae_baseline: float
    elapsed_s: float

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics to log for this epoch, by name."""
        names = ("train_nll", "val_nll", "val_mae", "val_mae_baseline")
        return {name: getattr(self, name) for name in names}


def validation_set(options: FitOptions) -> tuple[Tensor, Tensor]:
    """Return spectrograms and positions that are not used for training."""
    return _tensors(options.validation_samples, options.seed + VALIDATION_SEED_OFFSET)


def fit(model: nn.Module, options: FitOptions) -> Iterator[Epoch]:
    """Train `model` in place, on its device, and yield after each epoch. The model is in eval mode at each yield.

    Raises:
        FloatingPointError: If the loss is NaN or infinite.
    """
    start = time.monotonic()
    torch.manual_seed(options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    validation = validation_set(options)
    for number in itertools.count(1):
        training = _tensors(options.samples_per_epoch, options.seed + number)
        train_nll = _train_epoch(model, optimizer, training, _Clock(start, number - 1, options))
        outputs = predict(model, validation[0], options.batch_size)
        yield Epoch(
            number=number,
            train_nll=train_nll,
            val_nll=negative_log_likelihood(outputs, validation[1]).item(),
            val_mae=(outputs[0] - validation[1]).abs().mean().item(),
            val_mae_baseline=(training[1].mean(0) - validation[1]).abs().mean().item(),
            elapsed_s=time.monotonic() - start,
        )
        if time.monotonic() - start >= options.seconds and number >= options.epochs_min:
            return


def predict(model: nn.Module, inputs: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return positions and uncertainties on the CPU, for any number of inputs. The model stays in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        batches = [model(batch.to(device)) for batch in torch.split(inputs, batch_size)]
    positions, uncertainties = zip(*batches, strict=True)
    return torch.cat(positions).cpu(), torch.cat(uncertainties).cpu()


@dataclass(frozen=True, slots=True)
class _Clock:
    """Progress of the training from 0 to 1: the smaller of time and epochs."""

    start: float
    epochs_done: int
    options: FitOptions

    def progress(self, epoch_fraction: float) -> float:
        by_time = (time.monotonic() - self.start) / self.options.seconds if self.options.seconds > 0 else 1.0
        return min(by_time, (self.epochs_done + epoch_fraction) / self.options.epochs_min, 1.0)


def _train_epoch(model: nn.Module, optimizer: Optimizer, data: tuple[Tensor, Tensor], clock: _Clock) -> float:
    """Take one step for each batch, and return the mean loss of the samples."""
    model.train()
    device = next(model.parameters()).device
    inputs, targets = data
    total = 0.0
    for first in range(0, len(inputs), clock.options.batch_size):
        batch = slice(first, first + clock.options.batch_size)
        for group in optimizer.param_groups:
            group["lr"] = clock.options.learning_rate * _schedule(clock.progress(first / len(inputs)))
        loss = negative_log_likelihood(model(inputs[batch].to(device)), targets[batch].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_MAX)
        optimizer.step()
        total += loss.item() * len(inputs[batch])
        if not math.isfinite(total):
            raise FloatingPointError(f"the loss is {loss.item()} in epoch {clock.epochs_done + 1}: lower learning_rate")
    return total / len(inputs)


def negative_log_likelihood(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
    """Return the mean over batch and coordinates of -log N(target; position, uncertainty), in nats."""
    positions, uncertainties = outputs
    return functional.gaussian_nll_loss(positions, targets, uncertainties.square(), full=True)


def _schedule(progress: float) -> float:
    """Return the factor of the learning rate: a linear warm-up, then half a cosine down to 0.01."""
    if progress < WARMUP_FRACTION:
        return 0.1 + 0.9 * progress / WARMUP_FRACTION
    rest = min(1.0, (progress - WARMUP_FRACTION) / (1.0 - WARMUP_FRACTION))
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * rest))


def _tensors(count: int, seed: int) -> tuple[Tensor, Tensor]:
    inputs, targets = make_spectrograms(count, seed)
    return torch.from_numpy(inputs), torch.from_numpy(targets)
