"""Tables, ratings, graphs: several inputs, dicts, other dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from onnx_release.limits import ParityLimits
from onnx_release.trained.input_spec import InputSpec
from tests.zoo.entry import Entry, Exported, RefusedFor, floats, gives, tokens

_ROW = floats("row", "batch", 8)


class Mlp(nn.Module):
    """Three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(8, 32), nn.LayerNorm(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 16), nn.Tanh(),
            nn.Linear(16, 3),
        )  # fmt: skip

    def forward(self, row: Tensor) -> Tensor:
        scores: Tensor = self.layers(row)
        return scores


class BrainFloat(nn.Linear):
    """Computation in bfloat16 with float32 inputs and outputs."""

    def __init__(self) -> None:
        super().__init__(8, 3, dtype=torch.bfloat16)

    def forward(self, row: Tensor) -> Tensor:
        return super().forward(row.bfloat16()).float()


class TwoTowers(nn.Module):
    """A recommender that multiplies embeddings of users and items."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 16), nn.Embedding(80, 16)
        self.bias = nn.Linear(4, 1)

    def forward(self, user: Tensor, item: Tensor, context: Tensor) -> Tensor:
        rating = (self.users(user) * self.items(item)).sum(-1) + self.bias(context)[:, 0]
        return torch.sigmoid(rating)


class Features(TwoTowers):
    """The same model with one dict of features as input."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        rating = super().forward(features["user"], features["item"], features["context"])
        return {"rating": rating, "likes": rating > 0.5}


class KeywordsOnly(TwoTowers):
    """The same model with keyword-only parameters."""

    def forward(self, *, item: Tensor, user: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(user, item, context)


class Graph(nn.Module):
    """Two rounds of messages over a dense adjacency, for any number of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 16), nn.Linear(16, 2)

    def forward(self, nodes: Tensor, adjacency: Tensor) -> Tensor:
        norm = adjacency / adjacency.sum(-1, keepdim=True).clamp(min=1)
        hidden = torch.relu(torch.einsum("bij,bjf->bif", norm, self.first(nodes)))
        classes: Tensor = self.second(norm @ hidden)
        return classes


class Mixture(nn.Module):
    """Experts chosen by `torch.where` and a soft gate, with a mean over the batch as second output."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))
        self.gate = nn.Linear(8, 3)

    def forward(self, row: Tensor) -> tuple[Tensor, Tensor]:
        gate = self.gate(row).softmax(-1)
        gate = torch.where(gate > 0.2, gate, torch.zeros_like(gate))
        mixed = torch.stack([expert(row) for expert in self.experts], dim=-1)
        return (mixed * gate[:, None]).sum(-1), gate.mean()


def compiled(model: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(model, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def quantized(model: nn.Module) -> nn.Module:
    packed: nn.Module = torch.ao.quantization.quantize_dynamic(model.eval(), {nn.Linear}, dtype=torch.qint8)
    return packed


_PAIR = (tokens("user", "batch", vocabulary=50), tokens("item", "batch", vocabulary=80), floats("context", "batch", 4))
_SCORES = (gives("scores", "batch", 3),)
_HALF: Any = {"dtype": "float16"}

ENTRIES = (
    Entry(name="mlp", field="tabular", about="no signature; the release describes the input", make=Mlp, inputs=(_ROW,),
          store="pickle", signed=False, described=True, expected=Exported("dynamo")),
    Entry(name="mlp-float64", field="tabular", about="float64 throughout", make=Mlp, finish=nn.Module.double,
          inputs=(InputSpec(name="row", dtype="float64", shape=("batch", 8), low=-2, high=2),),
          outputs=(gives("scores", "batch", 3, dtype="float64"),), store="pickle", expected=Exported("dynamo")),
    Entry(name="mlp-float16", field="tabular", about="float16 throughout", make=Mlp, finish=nn.Module.half,
          inputs=(InputSpec(name="row", dtype="float16", shape=("batch", 8), low=-2, high=2),),
          outputs=(gives("scores", "batch", 3, **_HALF),), store="pickle", expected=Exported("dynamo"),
          limits=ParityLimits(mae_max=2e-3)),
    Entry(name="bfloat16", field="tabular", about="bfloat16 inside: no kernels in ONNX Runtime",
          make=BrainFloat, inputs=(_ROW,), outputs=_SCORES, store="pickle",
          expected=RefusedFor("parity", "NOT_IMPLEMENTED")),
    Entry(name="mlp-data-parallel", field="tabular", about="wrapped in nn.DataParallel, as many scripts log it",
          make=Mlp, finish=nn.DataParallel, inputs=(_ROW,), outputs=_SCORES, store="pickle",
          expected=Exported("dynamo")),
    Entry(name="mlp-compiled", field="tabular", about="what torch.compile returns", make=Mlp, finish=compiled,
          inputs=(_ROW,), outputs=_SCORES, store="pickle", expected=Exported("dynamo")),
    Entry(name="mlp-quantized", field="tabular", about="torch's dynamic int8: weights are packed objects",
          make=Mlp, finish=quantized, inputs=(_ROW,), outputs=_SCORES, store="pickle",
          expected=RefusedFor("unsupported_operator", "quantized::linear_dynamic")),
    Entry(name="two-towers", field="tabular", about="three inputs, two vocabularies", make=TwoTowers, inputs=_PAIR,
          outputs=(gives("rating", "batch"),), store="pt2", expected=Exported("dynamo")),
    Entry(name="feature-dict", field="tabular", about="one dict in, one dict out", make=Features, inputs=_PAIR,
          outputs=(gives("likes", "batch", dtype="bool"), gives("rating", "batch")), call="one dict", store="pickle",
          expected=Exported("dynamo-wrapped")),
    Entry(name="keywords-only", field="tabular", about="arguments by name alone", make=KeywordsOnly, inputs=_PAIR,
          outputs=(gives("rating", "batch"),), call="by name", store="pickle", expected=Exported("dynamo")),
    Entry(name="graph", field="tabular", about="messages between nodes; their count varies", make=Graph,
          inputs=(floats("nodes", "batch", "count", 5),
          InputSpec(name="adjacency", dtype="float32", shape=("batch", "count", "count"), low=0, high=1)),
          outputs=(gives("classes", "batch", "count", 2),), store="pickle", expected=Exported("dynamo")),
    Entry(name="mixture", field="tabular", about="torch.where, an output without a batch", make=Mixture, inputs=(_ROW,),
          outputs=(gives("mixed", "batch", 4), gives("load")), store="pickle", expected=Exported("dynamo")),
)  # fmt: skip
