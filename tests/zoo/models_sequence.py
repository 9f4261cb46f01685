"""Series of numbers: recurrent networks, attention with padding, temporal convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from onnx_release.trained.input_spec import InputSpec
from tests.zoo.entry import Entry, Exported, RefusedFor, floats, gives

_SERIES = floats("series", "batch", "time", 6)


class LstmTagger(nn.Module):
    """A bidirectional LSTM with a label for every step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 16, bidirectional=True, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, series: Tensor) -> Tensor:
        labels: Tensor = self.head(self.lstm(series)[0])
        return labels


class LstmStates(nn.Module):
    """The outputs of `nn.LSTM`: a tensor and a pair of states, whose batch is the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 16, batch_first=True)

    def forward(self, series: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, (hidden, cell) = self.lstm(series)
        return output, (hidden, cell)


class GruDecoder(nn.Module):
    """One step of a GRU with the state as input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 16, batch_first=True)
        self.head = nn.Linear(16, 6)

    def forward(self, step: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden, state = self.gru(step, state.transpose(0, 1).contiguous())
        return self.head(hidden), state.transpose(0, 1)


class CellLoop(nn.Module):
    """A Python loop over six time steps."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(6, 16)
        self.head = nn.Linear(16, 1)

    def forward(self, series: Tensor) -> Tensor:
        hidden = series.new_zeros(series.shape[0], 16)
        cell = torch.zeros_like(hidden)
        outputs = []
        for step in series.unbind(1):
            hidden, cell = self.cell(step, (hidden, cell))
            outputs.append(self.head(hidden))
        return torch.cat(outputs, dim=1)


class PaddedAttention(nn.Module):
    """A transformer encoder with a padding mask and pooling over the other steps."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.project = nn.Linear(6, 16)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, series: Tensor, padding: Tensor) -> Tensor:
        hidden = self.encoder(self.project(series), src_key_padding_mask=padding)
        kept = (~padding)[:, :, None]
        pooled = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)
        logits: Tensor = self.head(pooled)
        return logits


class CausalAttention(nn.Module):
    """Causal scaled dot-product attention with rotary positions for any length."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 48), nn.Linear(16, 6)
        self.register_buffer("frequencies", 10000 ** -(torch.arange(4) / 4))

    def forward(self, series: Tensor) -> Tensor:
        parts = self.qkv(series).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        attended = functional.scaled_dot_product_attention(self._turn(query), self._turn(key), value, is_causal=True)
        forecast: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return forecast

    def _turn(self, vectors: Tensor) -> Tensor:
        assert isinstance(self.frequencies, Tensor)
        angles = torch.arange(vectors.shape[2])[:, None] * self.frequencies
        even, odd = vectors[..., 0::2], vectors[..., 1::2]
        return torch.cat([even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()], dim=-1)


class TemporalConv(nn.Module):
    """Causal dilated convolutions, padded on the left by their reach."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(6, 6, 3, dilation=2**i) for i in range(3))

    def forward(self, series: Tensor) -> Tensor:
        hidden = series.transpose(1, 2)
        for i, layer in enumerate(self.layers):
            hidden = hidden + torch.tanh(layer(functional.pad(hidden, (2 ** (i + 1), 0))))
        return hidden.transpose(1, 2)


class Packed(nn.Module):
    """Packed sequences, whose lengths are values of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 8, batch_first=True)

    def forward(self, series: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(series, lengths, batch_first=True, enforce_sorted=False)
        last: Tensor = self.gru(packed)[1]
        return last[0]


def forecaster(hidden: int = 24) -> nn.Module:
    """Return the LightningModule. It is also the factory of the checkpoint."""
    from tests.zoo.lightning_models import Forecaster

    return Forecaster(hidden)


_EVERY_STEP = ("batch", "time")

ENTRIES = (
    Entry(name="lstm-tagger", field="recurrent", about="bidirectional LSTM; the length varies", make=LstmTagger,
          inputs=(_SERIES,), outputs=(gives("labels", *_EVERY_STEP, 5),), store="pickle", expected=Exported("dynamo")),
    Entry(name="lstm-pt2", field="recurrent", about="the same as pt2: torch.export unrolls its time",
          make=LstmTagger, inputs=(_SERIES,), outputs=(gives("labels", *_EVERY_STEP, 5),), store="pt2",
          expected=RefusedFor("frozen_dimension")),
    Entry(name="lstm-states", field="recurrent", about="nested outputs, a batch that is not first", make=LstmStates,
          inputs=(_SERIES,), outputs=(gives("output", *_EVERY_STEP, 16), gives("hidden", 1, "batch", 16),
          gives("cell", 1, "batch", 16)), store="pickle", expected=Exported("dynamo")),
    Entry(name="gru-step", field="recurrent", about="state in and out, two inputs", make=GruDecoder,
          inputs=(floats("step", "batch", 1, 6), floats("state", "batch", 1, 16)),
          outputs=(gives("prediction", "batch", 1, 6), gives("next_state", "batch", 1, 16)), store="pt2",
          expected=Exported("dynamo")),
    Entry(name="cell-loop", field="recurrent", about="Python loop over six steps", make=CellLoop,
          inputs=(floats("series", "batch", 6, 6),), outputs=(gives("values", "batch", 6),), store="mlflow 2",
          expected=Exported("dynamo")),
    Entry(name="lightning-forecaster", field="recurrent", about="Lightning checkpoint with hyperparameters",
          make=forecaster, inputs=(_SERIES,), steps=0, store="lightning", described=True, expected=Exported("dynamo")),
    Entry(name="packed-sequence", field="recurrent", about="packed by lengths that are data", make=Packed,
          inputs=(floats("series", "batch", 10, 6),
          InputSpec(name="lengths", dtype="int64", shape=("batch",), low=1, high=10)),
          outputs=(gives("last", "batch", 8),), store="pickle",
          expected=RefusedFor("not_exportable", "must be tuple of ints,but got FakeTensor")),
    Entry(name="padded-attention", field="attention", about="padding mask; two inputs of one length",
          make=PaddedAttention, inputs=(_SERIES, InputSpec(name="padding", dtype="bool", shape=_EVERY_STEP)),
          outputs=(gives("logits", "batch", 3),), store="pickle", expected=Exported("dynamo")),
    Entry(name="causal-attention", field="attention", about="scaled dot product, causal, rotary positions",
          make=CausalAttention, inputs=(_SERIES,), outputs=(gives("forecast", *_EVERY_STEP, 6),), store="pickle",
          expected=Exported("dynamo")),
    Entry(name="temporal-convolution", field="recurrent", about="causal dilated convolutions", make=TemporalConv,
          inputs=(_SERIES,), outputs=(gives("forecast", *_EVERY_STEP, 6),), store="pt2", expected=Exported("dynamo")),
)  # fmt: skip
