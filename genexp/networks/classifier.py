"""Small convolutional classifier, whose features are the feature space of the generation metrics."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

FIRST_WIDTH, MAX_WIDTH = 32, 128  # channels
POOLED_SIDE_PIXELS = 64  # larger images are first average-pooled to a shorter side of 64 to 127
STAGE_LAYERS = 4  # convolution, batch norm, ReLU, pooling
FINAL_SIDE_PIXELS = 4  # stages halve the image until its shorter side is at most this


class Classifier(nn.Module):
    """Stages of convolution, batch norm, ReLU and 2×2 max pooling; then a feature layer and the logits."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int, *, num_features: int = 64) -> None:
        """Build for images of `image_shape`: (channels, height, width), each side at least 2 pixels."""
        super().__init__()
        channels, height, width = image_shape
        pool_size = max(1, min(height, width) // POOLED_SIDE_PIXELS)
        height, width = height // pool_size, width // pool_size
        num_stages = max(1, math.ceil(math.log2(min(height, width) / FINAL_SIDE_PIXELS)))
        layers: list[nn.Module] = []
        for stage in range(num_stages):
            out_channels = min(FIRST_WIDTH * 2**stage, MAX_WIDTH)
            layers += [
                nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
            channels = out_channels
        flat = channels * (height >> num_stages) * (width >> num_stages)
        self.downsample = nn.AvgPool2d(pool_size)
        self.stages = nn.Sequential(*layers)
        # Batch norm before the ReLU prevents dead features, which would be 0 for every image.
        self.to_features = nn.Sequential(
            nn.Flatten(), nn.Linear(flat, num_features, bias=False), nn.BatchNorm1d(num_features), nn.ReLU()
        )
        self.to_logits = nn.Linear(num_features, num_classes)

    def extract_features(self, images: Tensor) -> Tensor:
        """Return the penultimate activations: (batch, channels, height, width) in [0, 1] → (batch, features)."""
        return torch.as_tensor(self.to_features(self.stages(self.downsample(2 * images - 1))))

    @torch.no_grad()
    def build_fast_copy(self) -> Classifier:
        """Return a copy for evaluation whose features take less time on a CPU.

        Each batch norm is part of the convolution before it. The ReLU follows the pooling, which gives the same
        values. Filters have the channels-last format. Features differ by rounding only, about 1e-6.
        """
        network = copy.deepcopy(self).eval()
        layers: list[nn.Module] = []
        for index in range(0, len(network.stages), STAGE_LAYERS):
            convolution, norm = network.stages[index], network.stages[index + 1]
            assert isinstance(convolution, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            fused = fuse_conv_bn_eval(convolution, norm)
            fused.weight.data = fused.weight.data.to(memory_format=torch.channels_last)
            layers += [fused, nn.MaxPool2d(2), nn.ReLU()]
        network.stages = nn.Sequential(*layers)
        return network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits: (batch, channels, height, width) in [0, 1] → (batch, classes)."""
        return torch.as_tensor(self.to_logits(self.extract_features(images)))
