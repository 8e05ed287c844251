"""Standard vision networks in PyTorch, from torchvision and timm, narrow or with few classes."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn


def _torchvision() -> ModuleType:
    """torchvision, also where its compiled operators do not load.

    The wheel of PyPI is linked against CUDA. Beside a PyTorch without it, the import fails at the declaration
    of ``nms``; declared here, everything that needs no compiled operator works.
    """
    try:
        return import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        module = import_module("torchvision")
        module._declared = library  # as long as it lives, so do the declarations
        return module


models = _torchvision().models
CLASSES = 10


def classifier(name: str, **options: Any) -> nn.Module:
    """A classifier of torchvision by the name of its function."""
    module: nn.Module = getattr(models, name)(weights=None, num_classes=CLASSES, **options)
    return module


def densenet() -> nn.Module:
    return models.DenseNet(growth_rate=12, block_config=(3, 3, 3), num_init_features=24, num_classes=CLASSES)


def googlenet() -> nn.Module:
    return models.GoogLeNet(num_classes=CLASSES, aux_logits=False, init_weights=False)


def vgg() -> nn.Module:
    """VGG with batch norm, and two hidden linear layers."""
    features = models.vgg.make_layers([16, "M", 32, "M", 64, 64, "M"], batch_norm=True)
    hidden = nn.Sequential(nn.Linear(64 * 16, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, CLASSES))
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(4), nn.Flatten(), hidden)


def lraspp() -> nn.Module:
    return models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)


def deeplab() -> nn.Module:
    """Atrous spatial pyramid pooling behind a small backbone."""
    backbone = models.mobilenet_v3_small(weights=None).features
    head = models.segmentation.deeplabv3.DeepLabHead(576, 5, (2, 4))
    return _Upsampled(nn.Sequential(backbone, head))


class _Upsampled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: Any) -> Any:
        return nn.functional.interpolate(
            self.inner(image), size=image.shape[-2:], mode="bilinear", align_corners=False
        )


def by_timm(name: str, **options: Any) -> nn.Module:
    """A classifier of timm by its name."""
    _torchvision()
    import timm

    module: nn.Module = timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)
    return module


def vit() -> nn.Module:
    return by_timm("vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=96, depth=4, num_heads=3)


def swin() -> nn.Module:
    return by_timm(
        "swin_tiny_patch4_window7_224",
        img_size=64,
        window_size=4,
        embed_dim=32,
        depths=(2, 2),
        num_heads=(2, 4),
    )
