"""Models with control flow, models that diverged, and models in the wrong mode. Most of them are refused."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.entry import Entry, Exported, RefusedFor, floats, gives
from tests.zoo.models_tabular import Mlp

_ROW = floats("row", "batch", 8)
_SCORES = (gives("scores", "batch", 3),)


class Decides(Mlp):
    """A Python branch on the sum of the batch."""

    def forward(self, row: Tensor) -> Tensor:
        scores = super().forward(row)
        return scores * 2 if row.sum() > 0 else scores - 1


class CondDecides(Mlp):
    """The same branch as an operator."""

    def forward(self, row: Tensor) -> Tensor:
        scores = super().forward(row)
        chosen: Tensor = torch.cond(row.sum() > 0, lambda x: x * 2.0, lambda x: x - 1.0, (scores,))
        return chosen


class ScriptDecides(Mlp):
    """The same branch for TorchScript, which compiles both sides."""

    def forward(self, row: Tensor) -> Tensor:
        scores: Tensor = self.layers(row)
        if bool(row.sum() > 0):
            return scores * 2
        return scores - 1


class LoopsOverBatch(Mlp):
    """A Python loop over the rows."""

    def forward(self, row: Tensor) -> Tensor:
        return torch.stack([self.layers(one[None])[0] for one in row])


class ReadsNumber(Mlp):
    """A conversion to a Python number and back."""

    def forward(self, row: Tensor) -> Tensor:
        return super().forward(row) * float(row.abs().max().item())


class CountsBatch(Mlp):
    """A slice of a table by the batch size as a Python integer."""

    def forward(self, row: Tensor) -> Tensor:
        count = int(row.shape[0])
        return super().forward(row) + torch.arange(64.0)[:count, None]


class Selects(Mlp):
    """A selection of rows whose number depends on the values."""

    def forward(self, row: Tensor) -> Tensor:
        scores = super().forward(row)
        return scores[scores[:, 0] > 0]


class Samples(Mlp):
    """Random noise, as in the encoder of a variational model."""

    def forward(self, row: Tensor) -> Tensor:
        scores = super().forward(row)
        return scores + torch.randn_like(scores)


class AlwaysDrops(Mlp):
    """`functional.dropout` without `training=self.training`."""

    def forward(self, row: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(row, 0.3))


class Mixes(Mlp):
    """Normalisation by the statistics of the batch, so each row's output depends on the other rows."""

    def forward(self, row: Tensor) -> Tensor:
        return super().forward((row - row.mean(0)) / (row.std(0, correction=0) + 1e-3))


class NumpyInside(Mlp):
    """A sort in numpy."""

    def forward(self, row: Tensor) -> Tensor:
        import numpy as np

        return super().forward(torch.from_numpy(np.sort(row.detach().numpy(), axis=1)))


class Phases(Mlp):
    """Complex outputs."""

    def forward(self, row: Tensor) -> Tensor:
        phases: Tensor = torch.fft.rfft(super().forward(row))
        return phases


def diverged(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters())[0, :3] = torch.nan
    return model


def _odd(name: str, about: str, make: type[nn.Module], expected: Exported | RefusedFor, **changes: object) -> Entry:
    """Return an entry that is pickled, with one row as input and three scores as output by default."""
    usual = {"inputs": (_ROW,), "outputs": _SCORES, "store": "pickle", "field": "control"}
    return Entry(name=name, about=about, make=make, expected=expected, **(usual | changes))  # type: ignore[arg-type]


ENTRIES = (
    _odd("if-on-values", "a Python `if` on a tensor", Decides, RefusedFor("data_dependent")),
    _odd("cond-on-values", "the same by torch.cond", CondDecides, Exported("dynamo"), steps=0),
    _odd("if-in-script", "the same by TorchScript", ScriptDecides, Exported("torchscript"),
         finish=lambda model: torch.jit.script(model.eval()), store="script"),
    _odd("loop-over-batch", "a Python loop over the rows", LoopsOverBatch,
         RefusedFor("frozen_batch", "Iterating over a tensor")),
    _odd("item", "a tensor's value as a Python number", ReadsNumber, Exported("dynamo")),
    _odd("counts-batch", "the batch as a Python integer", CountsBatch, Exported("dynamo-auto")),
    _odd("selects-rows", "a mask decides how many rows come out", Selects, Exported("dynamo")),
    _odd("samples-noise", "another answer at every call", Samples, RefusedFor("random_outputs")),
    _odd("batch-statistics", "normalised by the batch at hand", Mixes, Exported("dynamo")),
    _odd("always-drops", "dropout that ignores the mode", AlwaysDrops, RefusedFor("train_mode")),
    _odd("logged-in-train-mode", "pt2 that was traced before eval()", Mlp, RefusedFor("train_mode"), store="pt2",
         mode="train"),
    _odd("numpy-inside", "leaves PyTorch for numpy", NumpyInside,
         RefusedFor("unsupported_operator", "aten::sort")),
    _odd("complex-output", "complex numbers out", Phases, RefusedFor("outputs_differ", "torch.complex64"), steps=0,
         outputs=(gives("phases", "batch", 2, dtype="complex64"),)),
    _odd("diverged", "weights that hold NaN", Mlp, RefusedFor("nan_weights"), finish=diverged),
    _odd("no-signature", "an example alone says what goes in", Mlp, Exported("dynamo"), signed=False),
    _odd("nothing-said", "neither signature nor example", Mlp, RefusedFor("no_signature"), signed=False,
         exampled=False),
)  # fmt: skip
