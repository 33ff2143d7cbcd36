"""Makes torchvision importable if its compiled operators are missing. Import this module first.

They are missing if torchvision was built for another version of torch. Declaring them is enough: neither torchvision's
transforms nor timm's networks call them.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # "operator torchvision::nms does not exist"
    _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for _operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _operator):
            _LIBRARY.define(f"{_operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
