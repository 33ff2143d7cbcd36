"""Lets torchvision be imported where its compiled operators are missing; import this before it.

They are missing where they were built for another torch than the installed one. Declared, they let the rest of it be
imported, and neither its transforms nor timm's networks use them.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # "operator torchvision::nms does not exist"
    _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for _operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _operator):
            _LIBRARY.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
