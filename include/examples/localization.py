"""`LocalizationNet`: the position of a sound source and its uncertainty, from mel-spectrograms of three receivers.

The backbone is ConvNeXt (Liu et al., "A ConvNet for the 2020s", 2022), written in plain torch. Training, loading and
exporting it need no other library.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

INPUT_SHAPE = (3, 128, 32)
UNCERTAINTY_MIN = 0.01
UNCERTAINTY_MAX = 1.0

_LAYER_SCALE_INIT = 1e-6
_NORM_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSize:
    """Blocks and channels of the four stages.

    `stochastic_depth` is the probability to skip the last block in training. It grows linearly from the first block.
    """

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    stochastic_depth: float = 0.0


# Depths and widths are the published ones, stochastic depth is torchvision's. `nano` is a small size for tests and
# demos. It is not published, and it is not the variant of 15 M parameters that other libraries call "nano".
SIZES = {
    "nano": BackboneSize(depths=(1, 1, 2, 1), widths=(16, 32, 64, 128)),
    "tiny": BackboneSize(depths=(3, 3, 9, 3), widths=(96, 192, 384, 768), stochastic_depth=0.1),
    "small": BackboneSize(depths=(3, 3, 27, 3), widths=(96, 192, 384, 768), stochastic_depth=0.4),
    "base": BackboneSize(depths=(3, 3, 27, 3), widths=(128, 256, 512, 1024), stochastic_depth=0.5),
    "large": BackboneSize(depths=(3, 3, 27, 3), widths=(192, 384, 768, 1536), stochastic_depth=0.5),
    "huge": BackboneSize(depths=(3, 3, 27, 3), widths=(352, 704, 1408, 2816), stochastic_depth=0.5),
}


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of a (B, C, H, W) tensor, separately at each position."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class StochasticDepth(nn.Module):
    """Stochastic depth: in training, drops a residual branch for random samples. In eval mode: identity."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not self.training or self.drop == 0.0:
            return x
        keep = 1.0 - self.drop
        return x * torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep).div_(keep)


class Block(nn.Module):
    """Residual block: 7x7 depthwise convolution, layer norm, MLP of four times the width, layer scale."""

    def __init__(self, channels: int, drop: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        # Linear layers on channels-last data equal the 1x1 convolutions of the paper. Each is one GEMM.
        self.norm = nn.LayerNorm(channels, eps=_NORM_EPS)
        self.expand = nn.Linear(channels, 4 * channels)
        self.contract = nn.Linear(4 * channels, channels)
        self.layer_scale = nn.Parameter(torch.full((channels,), _LAYER_SCALE_INIT))
        self.stochastic_depth = StochasticDepth(drop)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        branch = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        branch = self.contract(functional.gelu(self.expand(branch))) * self.layer_scale
        result: Tensor = x + self.stochastic_depth(branch.permute(0, 3, 1, 2))
        return result


class LocalizationNet(nn.Module):
    """ConvNeXt, a global average pool with layer norm, and two heads.

    Parameters: tiny 28.0 M, small 49.7 M, base 87.9 M, large 196.7 M, huge 658 M. The initial weights are drawn from
    torch's global generator (truncated normal, 0.02).

    Args:
        size: A name in `SIZES`, or a `BackboneSize`.
    """

    def __init__(self, size: str | BackboneSize = "tiny") -> None:
        super().__init__()
        backbone = _find_size(size) if isinstance(size, str) else size
        self.backbone = nn.Sequential(*_backbone_layers(backbone))
        self.norm = nn.LayerNorm(backbone.widths[-1], eps=_NORM_EPS)
        self.position_head = _head(backbone.widths[-1])
        self.uncertainty_head = _head(backbone.widths[-1])
        self.apply(_init_weights)

    def forward(self, mel_spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        """Return positions (B, 2) and their standard deviations (B, 2) for spectrograms (B, 3, 128, 32) in float32.

        Positions are unbounded. Standard deviations are in [UNCERTAINTY_MIN, UNCERTAINTY_MAX], in the same unit.
        """
        features = self.norm(self.backbone(mel_spectrogram).mean(dim=(2, 3)))
        uncertainties = functional.softplus(self.uncertainty_head(features))
        return self.position_head(features), uncertainties.clamp(UNCERTAINTY_MIN, UNCERTAINTY_MAX)


def _find_size(name: str) -> BackboneSize:
    if name not in SIZES:
        raise ValueError(f"size {name!r} is unknown: use one of {', '.join(SIZES)}, or a BackboneSize")
    return SIZES[name]


def _backbone_layers(size: BackboneSize) -> Iterator[nn.Module]:
    last = max(1, sum(size.depths) - 1)
    drops = (size.stochastic_depth * block / last for block in itertools.count())
    channels = INPUT_SHAPE[0]
    for stage, (depth, width) in enumerate(zip(size.depths, size.widths, strict=True)):
        if stage == 0:
            yield nn.Conv2d(channels, width, kernel_size=4, stride=4)
            yield ChannelNorm(width)
        else:
            yield ChannelNorm(channels)
            yield nn.Conv2d(channels, width, kernel_size=2, stride=2)
        for _ in range(depth):
            yield Block(width, next(drops))
        channels = width


def _head(features: int) -> nn.Sequential:
    """Return a head with layers of 128, 64 and 2 units, as in the original network."""
    layers: list[nn.Module] = []
    for width_in, width_out, dropout in ((features, 128, 0.3), (128, 64, 0.2)):
        layers += [nn.Linear(width_in, width_out), nn.BatchNorm1d(width_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(64, 2))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
