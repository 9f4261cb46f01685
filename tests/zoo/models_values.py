"""Models whose values are uncommon: offsets, infinities, ties, missing values, state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.entry import Entry, Exported, RefusedFor, floats, gives
from tests.zoo.models_tabular import Mlp

_ROW = floats("row", "batch", 8)


class MapCoordinates(Mlp):
    """Positions in metres of a national grid."""

    def forward(self, row: Tensor) -> Tensor:
        return 10 * super().forward(row) + torch.tensor([432_000.0, 5_021_000.0, 0.0])


class BoundedAction(Mlp):
    """Actions within bounds of which some are infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor([-1.0, -torch.inf, -2.0]))
        self.register_buffer("high", torch.tensor([1.0, torch.inf, 2.0]))

    def forward(self, row: Tensor) -> Tensor:
        return torch.clamp(super().forward(row), self.low, self.high)


class LegalMoves(Mlp):
    """Logits with minus infinity for each illegal move."""

    def forward(self, row: Tensor) -> Tensor:
        return super().forward(row).masked_fill(row[:, :3] > 1.5, -torch.inf)


class Peaks(nn.Module):
    """The highest places of a heatmap."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        scores, places = torch.sigmoid(self.conv(image)).flatten(1).topk(5)
        return scores, places


class Detections(Mlp):
    """The rows above a threshold: none for many inputs."""

    def forward(self, row: Tensor) -> Tensor:
        scores = super().forward(row)
        return scores[scores[:, 0] > 0.1]


class LogFeatures(Mlp):
    """The logarithm of positive features."""

    def forward(self, row: Tensor) -> Tensor:
        return super().forward(row.log())


class Category(nn.Module):
    """A table whose first column is a category, stored as a float."""

    def __init__(self) -> None:
        super().__init__()
        self.category, self.head = nn.Embedding(4, 3), nn.Linear(10, 3)

    def forward(self, row: Tensor) -> Tensor:
        column = self.category(row[:, 0].long().remainder(4))
        scores: Tensor = self.head(torch.cat([column, row[:, 1:]], 1))
        return scores


class OwnSpread(nn.Module):
    """Feature maps divided by their own spread."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.conv(image)
        maps = (maps - maps.mean((2, 3), keepdim=True)) / (maps.std((2, 3), keepdim=True) + 1e-6)
        return maps.flatten(2)[:, :, :4].mean(2)


class BatchNormalised(nn.Module):
    """A batch norm without running statistics, which uses those of the batch in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, image: Tensor) -> Tensor:
        maps: Tensor = self.norm(self.conv(image))
        return maps


class Rotary(nn.Module):
    """A table of angles that grows when a longer input comes."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.longest = nn.Linear(8, 8), 0

    def forward(self, series: Tensor) -> Tensor:
        length = series.shape[1]
        if length > self.longest:
            self.table = torch.outer(torch.arange(length).float(), 1.0 / 100 ** (torch.arange(8) / 8)).cos()
            self.longest = length
        turned: Tensor = self.query(series) * self.table[:length]
        return turned


class Calls(Mlp):
    """A count of the calls that changes the result."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, row: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(row) * self.calls


class GridPool(nn.Module):
    """Adaptive max pooling to a size that does not divide the image's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveMaxPool2d((5, 3))

    def forward(self, image: Tensor) -> Tensor:
        pooled: Tensor = self.pool(self.conv(image))
        return pooled


class Inverse(nn.Module):
    """The inverse of a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Linear(8, 9)

    def forward(self, row: Tensor) -> Tensor:
        matrix = self.square(row).view(-1, 3, 3)
        inverse: Tensor = torch.linalg.inv(matrix @ matrix.transpose(1, 2) + torch.eye(3))
        return inverse


def _row(name: str, about: str, make: type[nn.Module], expected: Exported | RefusedFor, **changes: object) -> Entry:
    """Return an entry that is pickled, with one row as input and three scores as output by default."""
    usual = {"inputs": (_ROW,), "outputs": (gives("scores", "batch", 3),), "store": "pickle", "field": "values"}
    return Entry(name=name, about=about, make=make, expected=expected, **(usual | changes))  # type: ignore[arg-type]


_IMAGE = (floats("image", "batch", 3, 16, 16),)
_DYNAMO = Exported("dynamo")

ENTRIES = (
    _row("map-coordinates", "an offset of 5,000 km in an output", MapCoordinates, _DYNAMO, steps=0),
    _row("bounded-action", "infinite buffers", BoundedAction, _DYNAMO),
    _row("legal-moves", "minus infinity in the output", LegalMoves, _DYNAMO, steps=0),
    _row("peaks", "top-k, which ties on equal values", Peaks, _DYNAMO, inputs=_IMAGE,
         outputs=(gives("scores", "batch", 5), gives("places", "batch", 5, dtype="int64"))),
    _row("no-detections", "an empty output for some inputs", Detections, _DYNAMO),
    _row("log-features", "defined for positive inputs only", LogFeatures, _DYNAMO,
         inputs=(floats("row", "batch", 8, low=0.1, high=3.0),)),
    _row("float-category", "a category in a float column", Category, _DYNAMO,
         inputs=(floats("row", "batch", 8, low=0, high=3),)),
    _row("own-spread", "divides by the input's own spread", OwnSpread, _DYNAMO, inputs=_IMAGE,
         outputs=(gives("means", "batch", 8),)),
    _row("batch-norm-without-statistics", "uses the batch's statistics", BatchNormalised, _DYNAMO, inputs=_IMAGE,
         outputs=(gives("maps", "batch", 4, 14, 14),)),
    _row("growing-table", "a table on the module grows with the input", Rotary,
         RefusedFor("size_limit", "writes longest, table"), inputs=(floats("series", "batch", "time", 8),),
         outputs=(gives("turned", "batch", "time", 8),)),
    _row("counts-calls", "each call changes the next result", Calls, RefusedFor("stateful_model")),
    _row("grid-pool", "an operator that ONNX lacks", GridPool,
         RefusedFor("unsupported_operator", "adaptive_max_pool2d"), inputs=_IMAGE,
         outputs=(gives("pooled", "batch", 4, 5, 3),)),
    _row("matrix-inverse", "another operator that ONNX lacks", Inverse,
         RefusedFor("unsupported_operator", "linalg_inv"), outputs=(gives("inverse", "batch", 3, 3),), steps=0),
)  # fmt: skip
