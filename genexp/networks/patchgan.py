"""PatchGAN discriminator of pix2pix and CycleGAN, with one score per image patch (Isola et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from genexp.networks.gan import LEAKY_RELU_SLOPE

TRANSLATION_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,  # per image, which suits small batches
}
MAX_WIDTH_FACTOR = 8  # upper limit of channels, as a multiple of the first width
RECEPTIVE_FIELD_PIXELS = (1, 16, 34, 70)  # side of the patch behind one score, by number of halvings
MAX_PATCH_FRACTION = 5 / 8  # upper limit of the patch side, as a fraction of the image side


def build_patchgan(channels: int, size: tuple[int, int], *, width: int, norm: str) -> nn.Sequential:
    """Return a network from images (batch, channels, *size) to one score per patch: (batch, 1, rows, columns).

    `size` is (height, width). Patches have a side of 70 pixels, or less on small images. `norm` is a key of
    TRANSLATION_NORMS.
    """
    num_halvings = max(
        count
        for count, patch in enumerate(RECEPTIVE_FIELD_PIXELS)
        if patch == 1 or patch <= MAX_PATCH_FRACTION * min(size)
    )
    if not num_halvings:
        return _build_pixelgan(channels, width)
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(LEAKY_RELU_SLOPE)]
    in_channels = width
    for level in range(1, num_halvings + 1):
        out_channels = width * min(MAX_WIDTH_FACTOR, 2**level)
        stride = 2 if level < num_halvings else 1
        layers += [
            nn.Conv2d(in_channels, out_channels, 4, stride, 1, bias=norm == "none"),
            TRANSLATION_NORMS[norm](out_channels),
        ]
        layers.append(nn.LeakyReLU(LEAKY_RELU_SLOPE))
        in_channels = out_channels
    return nn.Sequential(*layers, nn.Conv2d(in_channels, 1, 4, 1, 1))


def _build_pixelgan(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 1),
        nn.LeakyReLU(LEAKY_RELU_SLOPE),
        nn.Conv2d(width, 2 * width, 1),
        nn.LeakyReLU(LEAKY_RELU_SLOPE),
        nn.Conv2d(2 * width, 1, 1),
    )
