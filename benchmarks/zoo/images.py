"""Image networks in PyTorch whose heads, inputs or layers differ from those of classifiers."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def block(inputs: int, outputs: int, stride: int = 1, groups: int = 1, act: type = nn.ReLU) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    pointwise = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6())
    return nn.Sequential(block(inputs, inputs, stride, inputs, nn.ReLU6), pointwise)


class UNet(nn.Module):
    """Encoder, decoder of transposed convolutions, skip connections by concatenation."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first, self.second, self.middle = block(3, 16), block(16, 32), block(32, 64)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join2, self.join1 = block(64, 32), block(32, 16)
        self.head = nn.Conv2d(16, classes, 1)

    def forward(self, image: Any) -> Any:
        first = self.first(image)
        second = self.second(F.max_pool2d(first, 2))
        middle = self.middle(F.max_pool2d(second, 2))
        second = self.join2(torch.cat([self.up2(middle), second], 1))
        return self.head(self.join1(torch.cat([self.up1(second), first], 1)))


class Pyramid(nn.Module):
    """A backbone with features of strides 8 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(block(3, 16, 2), separable(16, 32, 2), separable(32, 48, 2))
        self.deep = nn.Sequential(separable(48, 64, 2), separable(64, 64))

    def forward(self, image: Any) -> Any:
        fine = self.stem(image)
        return fine, self.deep(fine)


class Ssd(nn.Module):
    """Boxes [n, anchors, 4] and scores [n, anchors, classes] of two grids."""

    def __init__(self, classes: int = 6, anchors: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.backbone = Pyramid()
        self.boxes = nn.ModuleList(nn.Conv2d(width, anchors * 4, 3, padding=1) for width in (48, 64))
        self.scores = nn.ModuleList(nn.Conv2d(width, anchors * classes, 3, padding=1) for width in (48, 64))

    def forward(self, image: Any) -> Any:
        grids = self.backbone(image)
        boxes = [head(grid).permute(0, 2, 3, 1) for head, grid in zip(self.boxes, grids, strict=True)]
        scores = [head(grid).permute(0, 2, 3, 1) for head, grid in zip(self.scores, grids, strict=True)]
        flat_boxes = [each.reshape(each.shape[0], -1, 4) for each in boxes]
        flat_scores = [each.reshape(each.shape[0], -1, self.classes) for each in scores]
        return torch.cat(flat_boxes, 1), torch.softmax(torch.cat(flat_scores, 1), -1)


class Yolo(nn.Module):
    """One tensor [n, 5 + classes, cells]: raw, or decoded to pixels and probabilities."""

    def __init__(self, decoded: bool, classes: int = 6) -> None:
        super().__init__()
        self.decoded = decoded
        self.backbone = Pyramid()
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.neck = block(112, 48, act=nn.SiLU)
        self.heads = nn.ModuleList(nn.Conv2d(width, 5 + classes, 1) for width in (48, 64))

    def forward(self, image: Any) -> Any:
        fine, coarse = self.backbone(image)
        fine = self.neck(torch.cat([fine, self.up(coarse)], 1))
        made = []
        for head, grid, stride in zip(self.heads, (fine, coarse), (8, 16), strict=True):
            raw = head(grid)
            height, width = raw.shape[-2:]
            raw = raw.flatten(2)
            if self.decoded:
                y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
                cells = torch.stack([x, y]).reshape(1, 2, -1).to(raw.dtype)
                centre = (raw[:, :2].sigmoid() * 2 - 0.5 + cells) * stride
                size = (raw[:, 2:4].sigmoid() * 2) ** 2 * stride * 2
                raw = torch.cat([centre, size, raw[:, 4:].sigmoid()], 1)
            made.append(raw)
        return torch.cat(made, 2)


class DsCnn(nn.Module):
    """Depthwise separable convolutions over a spectrogram [n, 1, 49, 10]."""

    def __init__(self, classes: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.blocks = nn.Sequential(*(separable(32, 32) for _ in range(3)))
        self.head = nn.Linear(32, classes)

    def forward(self, spectrogram: Any) -> Any:
        return self.head(self.blocks(self.stem(spectrogram)).mean((2, 3)))


class Autoencoder(nn.Module):
    """Convolutions down, nearest upsampling and convolutions up."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(block(1, 16, 2), block(16, 32, 2), nn.Conv2d(32, 8, 1))
        up = nn.Upsample(scale_factor=2)
        self.decode = nn.Sequential(up, block(8, 32), up, block(32, 16), nn.Conv2d(16, 1, 3, padding=1))

    def forward(self, image: Any) -> Any:
        return torch.sigmoid(self.decode(self.encode(image)))


class VaeDecoder(nn.Module):
    """An image from a code, by transposed convolutions with output padding."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(16, 64 * 16)
        self.first = nn.ConvTranspose2d(64, 32, 3, 2, 1, output_padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.ConvTranspose2d(32, 3, 4, 2, 1)

    def forward(self, code: Any) -> Any:
        grid = F.relu(self.start(code)).reshape(-1, 64, 4, 4)
        return torch.tanh(self.second(F.relu(self.norm(self.first(grid)))))


class SuperResolution(nn.Module):
    """Twice the size, by pixel shuffle or by nearest upsampling; the image itself is added."""

    def __init__(self, shuffle: bool) -> None:
        super().__init__()
        self.shuffle = shuffle
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 5, padding=2), nn.LeakyReLU(0.1), nn.Conv2d(24, 24, 3, padding=1)
        )
        self.tail = nn.Conv2d(24, 12 if shuffle else 3, 3, padding=1)

    def forward(self, image: Any) -> Any:
        features = F.leaky_relu(self.body(image), 0.1)
        base = F.interpolate(image, scale_factor=2, mode="nearest")
        if self.shuffle:
            return base + F.pixel_shuffle(self.tail(features), 2)
        return base + self.tail(F.interpolate(features, scale_factor=2, mode="nearest"))


class Siamese(nn.Module):
    """Cosine similarity, and both normalized embeddings' difference, of two images."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(block(3, 16, 2), block(16, 32, 2), block(32, 32, 2))
        self.embed = nn.Linear(32, 24)

    def branch(self, image: Any) -> Any:
        return F.normalize(self.embed(self.trunk(image).mean((2, 3))), dim=1)

    def forward(self, left: Any, right: Any) -> Any:
        first, second = self.branch(left), self.branch(right)
        return (first * second).sum(1, keepdim=True), (first - second).abs()


class DictOutputs(nn.Module):
    """A mask and a class, as a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(block(3, 16, 2), block(16, 32))
        self.mask = nn.Conv2d(32, 3, 1)
        self.kind = nn.Linear(32, 7)

    def forward(self, image: Any) -> Any:
        features = self.trunk(image)
        return {"mask": self.mask(features), "kind": self.kind(features.mean((2, 3)))}


class ThreeOutputs(nn.Module):
    """Attributes of a face: age, class, landmarks."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(block(3, 16, 2), separable(16, 32, 2), separable(32, 48, 2))
        self.age, self.kind, self.points = nn.Linear(48, 1), nn.Linear(48, 5), nn.Linear(48, 10)

    def forward(self, image: Any) -> Any:
        features = F.adaptive_avg_pool2d(self.trunk(image), 1).flatten(1)
        return F.softplus(self.age(features)), self.kind(features), torch.sigmoid(self.points(features))


class PreluFace(nn.Module):
    """A face embedding: PReLU of one slope per channel, a depthwise convolution at the end."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]
            layers += [nn.PReLU(outputs)]
        self.body = nn.Sequential(*layers)
        self.whole = nn.Conv2d(64, 64, 8, groups=64, bias=False)
        self.embed = nn.Linear(64, 48)
        self.norm = nn.BatchNorm1d(48)

    def forward(self, image: Any) -> Any:
        return self.norm(self.embed(self.whole(self.body(image)).flatten(1)))


class Keypoints(nn.Module):
    """Coordinates [n, points, 2] as the expectation of softmaxed heat maps, and the heat maps."""

    def __init__(self, points: int = 5, size: int = 16) -> None:
        super().__init__()
        self.trunk = nn.Sequential(block(3, 16, 2), block(16, 32, 2), block(32, 32))
        self.heat = nn.Conv2d(32, points, 1)
        self.register_buffer("steps", torch.linspace(0, 1, size))

    def forward(self, image: Any) -> Any:
        heat = self.heat(self.trunk(image))
        chance = torch.softmax(heat.flatten(2), -1).reshape(heat.shape)
        x, y = (chance.sum(2) * self.steps).sum(-1), (chance.sum(3) * self.steps).sum(-1)
        return torch.stack([x, y], -1), heat


class GroupNormNet(nn.Module):
    """Group normalization, instance normalization and weight standardization's usual neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.norm1, self.norm2 = nn.GroupNorm(4, 16), nn.GroupNorm(8, 32)
        self.third, self.norm3 = nn.Conv2d(32, 32, 3, padding=1), nn.InstanceNorm2d(32, affine=True)
        self.head = nn.Linear(32, 10)

    def forward(self, image: Any) -> Any:
        grid = F.gelu(self.norm2(self.second(F.silu(self.norm1(self.first(image))))))
        return self.head((grid + F.relu(self.norm3(self.third(grid)))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Residual blocks whose channels are scaled by a gate of their means."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 24, 2)
        self.bodies = nn.ModuleList(
            nn.Sequential(block(24, 24), nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24))
            for _ in range(3)
        )
        self.gates = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 6, 1), nn.ReLU(), nn.Conv2d(6, 24, 1), nn.Sigmoid()
            )
            for _ in range(3)
        )
        self.head = nn.Linear(24, 10)

    def forward(self, image: Any) -> Any:
        grid = self.stem(image)
        for body, gate in zip(self.bodies, self.gates, strict=True):
            change = body(grid)
            grid = F.relu(grid + change * gate(change))
        return self.head(grid.mean((2, 3)))


class Conv3d(nn.Module):
    """Gestures from eight frames [n, 3, 8, 32, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.second = nn.Conv3d(8, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 6)

    def forward(self, frames: Any) -> Any:
        grid = F.max_pool3d(F.relu(self.norm(self.first(frames))), (1, 2, 2))
        return self.head(F.relu(self.second(grid)).mean((2, 3, 4)))
