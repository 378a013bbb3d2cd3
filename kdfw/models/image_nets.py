"""Small convolutional networks for images of 32 x 32 (or 28 x 28) pixels, as used in the distillation literature.

Each maps (R, channels, height, width) to a feature map; `ImageClassifier` adds average pooling and a linear layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from kdfw.errors import ConfigError

NAMES = "resnetD (D = 6n + 2: 8, 14, 20, 32, ...), resnetDx4, resnet18, resnet34, wrn-D-K (D = 6n + 4), vgg8"
_WIDE_STAGES = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}


def build(name: str, channels: int) -> tuple[nn.Module, int]:
    """(network, channels of its feature map). Raises: ConfigError for an unknown name."""
    make, width = _find(name)
    return make(channels), width


def check(name: str) -> None:
    """Raises ConfigError for an unknown name; builds nothing."""
    _find(name)


def _find(name: str) -> tuple[Callable[[int], nn.Module], int]:
    if name in _WIDE_STAGES:
        return partial(ResNet, _WIDE_STAGES[name], (64, 64, 128, 256, 512)), 512
    if match := re.fullmatch(r"resnet(\d+)(x4)?", name):
        depth = int(match[1])
        if depth % 6 == 2 and depth >= 8:
            widths = (32, 64, 128, 256) if match[2] else (16, 16, 32, 64)
            return partial(ResNet, (depth // 6,) * 3, widths), widths[-1]
    elif match := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        depth, factor = int(match[1]), int(match[2])
        if depth % 6 == 4 and depth >= 10 and factor >= 1:
            return partial(WideResNet, depth // 6, factor), 64 * factor
    elif name == "vgg8":
        return VGG8, 512
    raise ConfigError(f"net: no network {name!r}; known: {NAMES}")


def convolution(inputs: int, outputs: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    """Without bias, padded to keep the size, initialised for ReLU (arXiv:1502.01852)."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class _Block(nn.Module):
    """Two convolutions and a shortcut (arXiv:1512.03385, sec. 4.2; 1 x 1 shortcut where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = convolution(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = convolution(outputs, outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(convolution(inputs, outputs, stride, 1), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """ResNet with a 3 x 3 stem and no pooling in it, for small images (arXiv:1512.03385, sec. 4.2).

    `blocks` of each stage, `widths` of the stem and of each stage. Three stages of n blocks are the CIFAR net of 6n + 2
    layers; four stages from 64 channels are ResNet-18 and -34 as they are used on CIFAR.
    """

    def __init__(self, blocks: Sequence[int], widths: Sequence[int], channels: int) -> None:
        super().__init__()
        self.stem, self.norm = convolution(channels, widths[0]), nn.BatchNorm2d(widths[0])
        stages = []
        for stage, number in enumerate(blocks):
            for block in range(number):
                inputs = widths[stage + 1] if block else widths[stage]
                stages.append(_Block(inputs, widths[stage + 1], 2 if stage and not block else 1))
        self.blocks = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.blocks(torch.relu(self.norm(self.stem(x))))
        return y


class _WideBlock(nn.Module):
    """Normalisation and activation before each convolution (arXiv:1605.07146, fig. 1)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), convolution(inputs, outputs, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), convolution(outputs, outputs)
        self.shortcut = convolution(inputs, outputs, stride, 1) if inputs != outputs or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(y)
        out: Tensor = kept + self.conv2(torch.relu(self.norm2(self.conv1(y))))
        return out


class WideResNet(nn.Module):
    """WRN of 6n + 4 layers, `factor` times as wide (arXiv:1605.07146), without dropout."""

    def __init__(self, blocks: int, factor: int, channels: int) -> None:
        super().__init__()
        widths = (16, 16 * factor, 32 * factor, 64 * factor)
        self.stem = convolution(channels, widths[0])
        stages = []
        for stage in range(3):
            for block in range(blocks):
                inputs = widths[stage + 1] if block else widths[stage]
                stages.append(_WideBlock(inputs, widths[stage + 1], 2 if stage and not block else 1))
        self.blocks = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.blocks(self.stem(x))))


class VGG8(nn.Module):
    """One convolution a stage, 64 to 512 channels, halved three times (arXiv:1409.1556 cut down as in 1910.10699)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = channels
        for stage, outputs in enumerate((64, 128, 256, 512, 512)):
            layers += [convolution(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU()]
            if stage < 3:
                layers.append(nn.MaxPool2d(2))
            inputs = outputs
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y
