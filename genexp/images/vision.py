"""torchvision, also where its compiled operators cannot load (a CPU build of torch beside PyPI's torchvision)."""

from __future__ import annotations

import torch


def _declare_missing_operators() -> torch.library.Library | None:
    """Declare the two operators whose absence makes `import torchvision` fail. genexp calls neither."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_OPERATOR_LIBRARY = _declare_missing_operators()  # the operators vanish with this object

import torchvision  # noqa: E402

__all__ = ["torchvision"]
