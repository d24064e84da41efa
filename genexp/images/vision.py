"""Import of torchvision that also works if its compiled operators cannot load.

They cannot load if a CPU build of torch is combined with the torchvision of PyPI.
"""

from __future__ import annotations

import torch


def _declare_missing_operators() -> torch.library.Library | None:
    """Declare the two operators without which `import torchvision` fails. genexp calls neither.

    Return None for a CUDA or ROCm build of torch, where nothing is declared.
    """
    if torch.version.cuda is not None or torch.version.hip is not None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_OPERATOR_LIBRARY = _declare_missing_operators()  # keeps the declarations alive

import torchvision  # noqa: E402

__all__ = ["torchvision"]
