"""Stage 2: a ViT segmenter retrained on pseudo-masks (docs/training.md)."""

import wsss  # noqa: F401  (torchvision's operators are declared before timm is imported)
