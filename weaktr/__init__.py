"""Stage 1: WeakTr, from image labels to class activation maps and pseudo-masks (arXiv 2304.01184)."""

import wsss  # noqa: F401  (its remedies must run before torchvision or timm are imported)
