"""Images: classification, segmentation, detection, reconstruction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from onnx_release.trained.input_spec import InputSpec
from tests.zoo.entry import Entry, Exported, RefusedFor, floats, gives

_IMAGE = floats("image", "batch", 3, 16, 16)


class ConvNet(nn.Module):
    """Two convolutions with batch norm, pooled to 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(16, 10))

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(image))
        return logits


class Residual(nn.Module):
    """Residual blocks with squeeze and excitation, grouped convolutions and group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.GroupNorm(4, 16) for _ in range(3))
        self.gate = nn.Linear(16, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.stem(image)
        for block, norm in zip(self.blocks, self.norms, strict=True):
            update = functional.silu(norm(block(hidden)))
            hidden = hidden + update * torch.sigmoid(self.gate(update.mean((2, 3))))[:, :, None, None]
        return functional.log_softmax(self.head(hidden.mean((2, 3))), dim=1)


class UNet(nn.Module):
    """A U-Net with bilinear interpolation to the size of the skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up = nn.Conv2d(24, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        skip = torch.relu(self.down(image))
        deep = torch.relu(self.bottom(functional.max_pool2d(skip, 2)))
        deep = functional.interpolate(deep, size=skip.shape[2:], mode="bilinear", align_corners=False)
        mask: Tensor = self.up(torch.cat([skip, deep], dim=1))
        return mask


class Segmenter(UNet):
    """The class of each pixel as an integer, and its probability."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        confidence, classes = super().forward(image).softmax(dim=1).max(dim=1)
        return classes, confidence


class Detector(nn.Module):
    """Boxes and scores for a grid of anchors, and the best five of them, in a dict with another dict inside."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 16, 4, stride=4)
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)

    def forward(self, image: Tensor) -> dict[str, object]:
        hidden = torch.relu(self.backbone(image))
        boxes = self.boxes(hidden).flatten(2).transpose(1, 2)
        scores = self.scores(hidden).flatten(2).transpose(1, 2).softmax(-1)
        best, labels = scores.max(dim=-1)
        top, where = best.topk(5, dim=1)
        picked = boxes.gather(1, where[:, :, None].expand(-1, -1, 4))
        return {"raw": {"boxes": boxes, "scores": scores}, "best": (picked, top, labels.gather(1, where))}


class AutoEncoder(nn.Module):
    """Transposed convolutions back to the image; weights normalised by a parametrisation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 4, stride=2, padding=1))
        self.decoder = nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.tanh(self.decoder(functional.gelu(self.encoder(image))))


class Camera(ConvNet):
    """A model of camera bytes, channels last, which it normalises."""

    def forward(self, frame: Tensor) -> Tensor:
        return super().forward((frame.permute(0, 3, 1, 2).float() / 255 - 0.45) / 0.225)


class Localizer(nn.Module):
    """A spatial transformer, which warps the image by a predicted affine grid."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Linear(3 * 8 * 8, 6)
        self.head = nn.Linear(3 * 16 * 16, 4)

    def forward(self, image: Tensor) -> Tensor:
        theta = self.where(functional.avg_pool2d(image, 2).flatten(1)).tanh().unflatten(1, (2, 3))
        grid = functional.affine_grid(theta, [image.shape[0], 3, 16, 16], align_corners=False)
        warped = functional.grid_sample(image, grid, align_corners=False)
        position: Tensor = self.head(warped.flatten(1))
        return position


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    labels: dict[str, Any] = {"num_labels": 6}
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=4,
        **labels,
    )  # fmt: skip
    return ViTForImageClassification(config)


def scripted(model: nn.Module) -> nn.Module:
    compiled: nn.Module = torch.jit.script(model.eval())
    return compiled


_LOGITS = (gives("logits", "batch", 10),)

ENTRIES = (
    Entry(name="convnet", field="vision", about="convolutions, batch norm, dropout", make=ConvNet, inputs=(_IMAGE,),
          outputs=_LOGITS, store="pt2", expected=Exported("dynamo")),
    Entry(name="residual", field="vision", about="group norm, excitation; pickled in train mode", make=Residual,
          inputs=(_IMAGE,), outputs=(gives("scores", "batch", 5),), store="pickle", mode="train",
          expected=Exported("dynamo")),
    Entry(name="unet", field="vision", about="bilinear resize; height and width vary", make=UNet,
          inputs=(floats("image", "batch", 3, "height", "width"),),
          outputs=(gives("mask", "batch", 2, "height", "width"),), sizes={"height": 16, "width": 20},
          store="pickle", expected=Exported("dynamo")),
    Entry(name="segmenter", field="vision", about="integer output (argmax) beside a float one", make=Segmenter,
          inputs=(_IMAGE,), outputs=(gives("classes", "batch", 16, 16, dtype="int64"),
          gives("confidence", "batch", 16, 16)), store="pt2", expected=Exported("dynamo")),
    Entry(name="detector", field="vision", about="nested outputs, top-k and gather", make=Detector, inputs=(_IMAGE,),
          outputs=(gives("raw.boxes", "batch", 16, 4), gives("raw.scores", "batch", 16, 3),
          gives("best.0", "batch", 5, 4), gives("best.1", "batch", 5), gives("best.2", "batch", 5, dtype="int64")),
          store="pickle", expected=Exported("dynamo")),
    Entry(name="autoencoder", field="vision", about="transposed convolution, weight norm", make=AutoEncoder,
          inputs=(_IMAGE,), store="safetensors", described=True, expected=Exported("dynamo")),
    Entry(name="camera", field="vision", about="uint8 input, channels last", make=Camera,
          inputs=(InputSpec(name="frame", dtype="uint8", shape=("batch", 16, 16, 3), low=0, high=255),),
          outputs=_LOGITS, store="pt2", expected=Exported("dynamo")),
    Entry(name="spatial-transformer", field="vision", about="affine grid, grid sampling", make=Localizer,
          inputs=(_IMAGE,), outputs=(gives("position", "batch", 4),), store="pickle", expected=Exported("dynamo")),
    Entry(name="vit", field="vision", about="transformers: ViT, a record of outputs", make=vit,
          inputs=(floats("pixel_values", "batch", 3, 16, 16),), outputs=(gives("logits", "batch", 6),),
          call="by name", store="pickle", expected=Exported("dynamo")),
    Entry(name="convnet-script", field="vision", about="compiled by torch.jit.script", make=ConvNet, inputs=(_IMAGE,),
          outputs=_LOGITS, finish=scripted, store="script", expected=Exported("torchscript")),
    Entry(name="convnet-trace", field="vision", about="traced by torch.jit.trace", make=ConvNet, inputs=(_IMAGE,),
          outputs=_LOGITS, store="trace", expected=Exported("torchscript")),
    Entry(name="frozen-batch", field="vision", about="logged with an example of one image", make=ConvNet,
          inputs=(_IMAGE,), outputs=_LOGITS, sizes={"batch": 1}, steps=0, store="pt2",
          expected=RefusedFor("frozen_batch")),
)  # fmt: skip
