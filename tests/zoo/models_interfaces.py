"""Models whose names, shapes and formats of inputs and outputs are uncommon."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from onnx_release.trained.input_spec import InputSpec
from tests.zoo.entry import Entry, Exported, floats, gives, tokens


class Estimate(NamedTuple):
    """A position with its uncertainty."""

    uncertainties: Tensor
    positions: Tensor


class Locator(nn.Module):
    """A regressor that returns a named tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.uncertainties = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, row: Tensor) -> Estimate:
        return Estimate(uncertainties=self.uncertainties(row).exp(), positions=self.positions(row) - 100)


class Difference(nn.Module):
    """Two inputs of the same shape that do not commute."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        change: Tensor = self.before(before) - 10 * self.after(after)
        return change


class Messages(nn.Module):
    """One round of messages along the edges of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.update = nn.Linear(16, 4)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        sent = self.update(nodes)[edges[0]]
        return torch.zeros(nodes.shape[0], 4).index_add(0, edges[1], sent)


class TwoEncoders(nn.Module):
    """Similarities of images and texts, which differ in number."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 4), nn.Embedding(30, 4)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        similarities: Tensor = self.image(image) @ self.text(text).mean(1).T
        return similarities


class Elman(nn.Module):
    """A plain recurrent network, which returns its states too."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(4, 6, num_layers=2, batch_first=True)

    def forward(self, series: Tensor) -> Tensor:
        last: Tensor = self.rnn(series)[0][:, -1]
        return last


class WithStates(nn.Module):
    """An LSTM that returns its states, whose batch is the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, num_layers=2, batch_first=True)

    def forward(self, series: Tensor) -> tuple[Tensor, Tensor]:
        out, (hidden, _) = self.lstm(series)
        return out, hidden


_CHANGE = (gives("change", "batch", 2),)
_EDGES = InputSpec(name="edges", dtype="int64", shape=(2, "edges"), vocabulary_size=5)

ENTRIES = (
    Entry(name="named-tuple", field="interface", about="outputs signed in another order than the fields",
          make=Locator, inputs=(floats("row", "batch", 8),),
          outputs=(gives("positions", "batch", 2), gives("uncertainties", "batch", 2)), store="pickle",
          expected=Exported("dynamo")),
    Entry(name="swapped-inputs", field="interface", about="inputs signed in another order than forward's",
          make=Difference, inputs=(floats("after", "batch", 4), floats("before", "batch", 4)), outputs=_CHANGE,
          call="by name", store="script", finish=lambda model: torch.jit.script(model.eval()),
          expected=Exported("torchscript")),
    Entry(name="hyphen-in-name", field="interface", about="an input name that cannot be a Python name",
          make=lambda: nn.Conv1d(4, 5, 3, padding=1), inputs=(floats("mel-spectrogram", "batch", 4, "length"),),
          outputs=(gives("features", "batch", 5, "length"),), store="pickle", expected=Exported("dynamo")),
    Entry(name="nodes-and-edges", field="interface", about="as many edges as it has, beside its nodes", make=Messages,
          inputs=(floats("nodes", "nodes", 16), _EDGES), outputs=(gives("features", "nodes", 4),),
          sizes={"nodes": 5, "edges": 7}, described=True, store="pickle", expected=Exported("dynamo")),
    Entry(name="two-encoders", field="interface", about="images and texts in different numbers", make=TwoEncoders,
          inputs=(floats("image", "images", 6), tokens("text", "texts", 7, vocabulary=30)),
          outputs=(gives("similarities", "images", "texts"),), sizes={"images": 5, "texts": 3}, store="pickle",
          expected=Exported("dynamo")),
    Entry(name="elman", field="interface", about="nn.RNN; the length varies", make=Elman,
          inputs=(floats("series", "batch", "time", 4),), outputs=(gives("last", "batch", 6),), store="pickle",
          expected=Exported("dynamo")),
    Entry(name="states-signed-fixed", field="interface", about="infer_signature: states look fixed in size",
          make=WithStates, inputs=(floats("series", "batch", 7, 4),),
          outputs=(gives("out", "batch", 7, 6), gives("hidden", "batch", 4, 6)), store="pickle",
          expected=Exported("dynamo")),
)  # fmt: skip
