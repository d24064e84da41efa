"""Arranging images in grids. (torchvision's make_grid would cost each start its import, over a second.)"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PADDING_PIXELS = 2  # pixels between images
PAD_VALUE = 1.0


def make_grid(images: Tensor, columns: int) -> Tensor:
    """Return images (count, channels, height, width) as one picture, row by row, `columns` wide."""
    rows = -(-len(images) // columns)
    num_blank = rows * columns - len(images)
    images = F.pad(images.float(), (0, PADDING_PIXELS, 0, PADDING_PIXELS), value=PAD_VALUE)
    blank = torch.full((num_blank, *images.shape[1:]), PAD_VALUE, device=images.device)
    cells = torch.cat([images, blank]).unflatten(0, (rows, columns))  # (rows, columns, c, h, w)
    picture = cells.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)  # (c, rows·h, columns·w)
    return F.pad(picture, (PADDING_PIXELS, 0, PADDING_PIXELS, 0), value=PAD_VALUE)


def make_row_grid(*batches: Tensor) -> Tensor:
    """Return a picture with one row for each batch of images (count, channels, height, width)."""
    return make_grid(torch.cat([batch.float() for batch in batches]), columns=len(batches[0]))
