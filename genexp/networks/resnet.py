"""ResNet generator of CycleGAN (Zhu et al. 2017, after Johnson et al. 2016)."""

from __future__ import annotations

from torch import Tensor, nn

from genexp.networks import register_network
from genexp.networks.unet import UNet

BLOCKS_BY_MIN_SIDE = ((256, 9), (128, 6), (0, 3))  # (minimum side in pixels, residual blocks)
TWO_HALVINGS_MIN_PIXELS = 16  # side in pixels; smaller images are halved once, not twice


class ResidualBlock(nn.Module):
    """Two convolutions whose output is added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape: (batch, channels, height, width)."""
        return features + self.change(features)


def build_resnet_generator(
    in_channels: int, out_channels: int, size: tuple[int, int], *, width: int, num_blocks: int | None
) -> nn.Sequential:
    """Return a network from images (batch, in_channels, *size) to (batch, out_channels, *size), all in [-1, 1].

    `size` is (height, width). `width` is the number of channels at full size. If `num_blocks` is None, the size
    determines the number of residual blocks. Borders are padded with zeros. The reflection padding of the paper
    has no deterministic backward pass on a GPU.
    """
    side = min(size)
    if num_blocks is None:
        num_blocks = next(count for pixels, count in BLOCKS_BY_MIN_SIDE if side >= pixels)
    num_halvings = 2 if side >= TWO_HALVINGS_MIN_PIXELS else 1
    layers = [nn.Conv2d(in_channels, width, 7, 1, 3, bias=False), nn.InstanceNorm2d(width), nn.ReLU()]
    sizes = [size]
    for _ in range(num_halvings):
        layers += [nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.InstanceNorm2d(2 * width), nn.ReLU()]
        width *= 2
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    layers += [ResidualBlock(width) for _ in range(num_blocks)]
    for height, image_width in reversed(sizes[:-1]):
        output_padding = 1 - height % 2, 1 - image_width % 2  # restores an even side after halving
        layers.append(nn.ConvTranspose2d(width, width // 2, 3, 2, 1, output_padding=output_padding, bias=False))
        width //= 2
        layers += [nn.InstanceNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, out_channels, 7, 1, 3), nn.Tanh())


@register_network("resnet", kind="translator")
def resnet_translator(
    shape: tuple[int, int, int], size: int, width: int = 32, blocks: int | None = None
) -> nn.Sequential:
    """Return the generator of CycleGAN, with `width` channels at full size; see `NETWORKS`."""
    return build_resnet_generator(shape[0], size, (shape[1], shape[2]), width=width, num_blocks=blocks)


@register_network("unet", kind="translator")
def unet_translator(
    shape: tuple[int, int, int], size: int, width: int = 32, norm: str = "instance", dropout: float = 0.0
) -> UNet:
    """Return the generator of pix2pix, with `width` channels in the first level; see `NETWORKS`."""
    return UNet(shape[0], size, (shape[1], shape[2]), width=width, norm=norm, dropout=dropout)
