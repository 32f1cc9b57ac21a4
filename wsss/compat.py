"""Remedies for two traps of the supported library versions. Imported first by every package of the project.

torchvision's wheels are built against one build of torch. Beside a CPU-only torch their compiled operators
cannot load, and ``import torchvision`` (hence ``import timm``) stops with "operator torchvision::nms does not
exist", because torchvision registers a fake kernel for an operator nobody declared. Declaring the two schemas
is enough: nothing here calls them.
"""

import importlib.util
from pathlib import Path

import torch

_library = None  # torch drops the declarations when this object dies


def declare_torchvision_operators() -> None:
    """Declare ``torchvision::nms`` and ``qnms`` if, and only if, torchvision's own operators cannot load."""
    global _library
    spec = importlib.util.find_spec("torchvision")
    if _library is not None or spec is None or spec.origin is None:
        return
    for library in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))
            return
        except OSError:
            continue
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def clamp_posterize() -> None:
    """Make timm's RandAugment keep at least one bit in ``posterize``.

    Its increasing form emits 0 bits now and then; Pillow >= 12 raises there, older ones gave a black picture.
    """
    from timm.data import auto_augment

    original = auto_augment.posterize
    if getattr(original, "clamped", False):
        return

    def posterize(img, bits_to_keep, **kwargs):
        return original(img, max(1, int(bits_to_keep)), **kwargs)

    posterize.clamped = True
    for name, operation in auto_augment.NAME_TO_OP.items():
        if operation is original:
            auto_augment.NAME_TO_OP[name] = posterize
    auto_augment.posterize = posterize
