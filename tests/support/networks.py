"""Layer shapes and weight files of networks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


def write_weight_file(path: Path) -> Path:
    """Write the weights of the first convolution of a VGG19, under the names of torchvision."""
    torch.save({"features.0.weight": torch.randn(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}, path)
    return path


def record_layer_shapes(network: nn.Module, images: Tensor) -> list[tuple[int, ...]]:
    """Return the output shape, without the batch axis, of each linear and convolutional layer."""
    shapes: list[tuple[int, ...]] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
        for layer in network.modules()
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return shapes
