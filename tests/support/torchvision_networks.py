"""torchvision's networks as users have them, made small: 5 classes, images of 3 × 32 × 32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models import VGG, VisionTransformer, mobilenet_v3_small
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.vgg import make_layers

if TYPE_CHECKING:
    from collections.abc import Callable

CLASSES = 5
IMAGE = (3, 32, 32)
FACTORY = f"{__name__}:made"


def as_images(x: Tensor) -> Tensor:
    """An assertion as forwards have them; pytest writes those of tests anew."""
    assert x.dim() == len(IMAGE) + 1, f"no images: {x}"
    return x


class _NarrowResNet(ResNet):
    def _make_layer(self, block: Any, planes: int, *given: Any, **named: Any) -> nn.Sequential:
        return super()._make_layer(block, planes // 16, *given, **named)


def resnet() -> nn.Module:
    network = _NarrowResNet(BasicBlock, [2, 1, 1, 1])
    network.fc = nn.Linear(512 // 16, CLASSES)
    return network


def vgg(dropout: float = 0.0) -> nn.Module:
    with torch.device("meta"):  # its classifier has 123 million parameters
        network = VGG(make_layers(["M"]), num_classes=CLASSES, init_weights=False)
    network.features = make_layers([8, "M", 12, "M", 16, 16, "M"], batch_norm=True)
    network.avgpool = nn.AdaptiveAvgPool2d((2, 2))
    network.classifier = nn.Sequential(
        *(nn.Linear(16 * 4, 24), nn.ReLU(True), nn.Dropout(dropout)),
        nn.Linear(24, CLASSES),
    )
    return network


def mobilenet(dropout: float = 0.0) -> nn.Module:
    return mobilenet_v3_small(
        width_mult=0.25, reduced_tail=True, num_classes=CLASSES, dropout=dropout
    )


def transformer(dropout: float = 0.0, layers: int = 3) -> nn.Module:
    return VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=layers,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=32,
        num_classes=CLASSES,
        dropout=dropout,
        attention_dropout=dropout,
    )


def convnext(dropout: float = 0.0) -> nn.Module:
    """`dropout`: of whole blocks, more often the later they come (stochastic depth)."""
    return ConvNeXt(
        [CNBlockConfig(8, 12, 2), CNBlockConfig(12, None, 1)],
        stochastic_depth_prob=dropout,
        num_classes=CLASSES,
    )


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "resnet": resnet,
    "vgg": vgg,
    "mobilenet": mobilenet,
    "transformer": transformer,
    "convnext": convnext,
}


def made(network: str, **given: Any) -> nn.Module:
    """The `model.factory`."""
    return NETWORKS[network](**given)


def sections(network: str, **given: Any) -> dict[str, Any]:
    """Of a config: three steps of `pred`, the last with two images, and a test."""
    return {
        "model": {"factory": FACTORY, "kwargs": {"network": network, **given}},
        "loss": {"name": "pred", "dim_in_decoder": 64},
        "schedule": {"epochs": 1},
        "data": {
            "name": "synthetic", "size": 32, "channels": 3, "classes": CLASSES,
            "train_images": 18, "test_images": 5, "batch_size": 8,
        },
    }  # fmt: skip
