"""The discriminator of pix2pix and CycleGAN: it judges each patch of an image by itself (Isola et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from genexp.networks.gan import SLOPE

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "instance": nn.InstanceNorm2d,  # each image by itself: for batches of few images
}
WIDEST = 8  # times the first width
PATCHES = (1, 16, 34, 70)  # pixels a side that one score sees, by the number of halvings
PART_SEEN = 5 / 8  # of the image at most; a score that saw all of it would be no patch's


def patchgan(channels: int, size: tuple[int, int], *, width: int, norm: str) -> nn.Sequential:
    """Return a network from images (batch, channels, *size) to scores (batch, 1, rows, columns), one a patch.

    Patches have 70 pixels a side where the image leaves room for that, and fewer on small images.
    """
    halvings = max(n for n, patch in enumerate(PATCHES) if patch == 1 or patch <= PART_SEEN * min(size))
    if not halvings:
        return _by_pixel(channels, width)
    layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(SLOPE)]
    before = width
    for level in range(1, halvings + 1):
        after = width * min(WIDEST, 2**level)
        stride = 2 if level < halvings else 1
        layers += [nn.Conv2d(before, after, 4, stride, 1, bias=norm == "none"), NORMS[norm](after)]
        layers.append(nn.LeakyReLU(SLOPE))
        before = after
    return nn.Sequential(*layers, nn.Conv2d(before, 1, 4, 1, 1))


def _by_pixel(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 1),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(width, 2 * width, 1),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(2 * width, 1, 1),
    )
