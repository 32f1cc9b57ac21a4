"""Dense CRF (Krähenbühl and Koltun, 2011): sharpens label maps and probabilities along a picture's edges.

Needs the module ``pydensecrf`` (package pydensecrf2). Its defaults are the published ones: a diagonal kernel,
normalised symmetrically.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from wsss.errors import UserError


@dataclass(frozen=True)
class CrfPreset:
    """Two Potts kernels. Smoothness joins near pixels, appearance those of like colour further away."""

    smooth_sxy: float  # pixels
    smooth_compat: float
    appearance_sxy: float  # pixels
    appearance_srgb: float  # levels of 0..255
    appearance_compat: float
    iterations: int = 10


PRESETS = {  # as published
    "voc12_cam": CrfPreset(4, 3, 83, 5, 3),
    "coco14_cam": CrfPreset(3, 3, 50, 5, 10),
    "voc12_segmentation": CrfPreset(3, 3, 83, 5, 3),
    "coco14_segmentation": CrfPreset(1, 3, 67, 3, 4),
    "getam": CrfPreset(3, 3, 83, 5, 4, iterations=20),
}
LABEL_PROBABILITY = 0.7  # belief in a given label; the rest is shared by the others


def crf_from_labels(
    image: ArrayLike, labels: ArrayLike, *, num_labels: int, preset: str = "voc12_cam"
) -> np.ndarray:
    """Sharpen a label map, as the published pseudo-masks are made.

    Args:
        image: (H, W, 3), RGB, 0..255; an array, a tensor on the CPU, or a list, as the labels.
        labels: integers (H, W), 0..num_labels-1. Number the picture's own classes only: the cost is
            proportional to ``num_labels`` (0.5 s at 21 labels, 500x375, one core).
        num_labels: Labels that a pixel may take, whether or not one occurs in ``labels``.
        preset: A name in ``PRESETS``.

    Returns:
        uint8 (H, W), 0..num_labels-1. A map of a single label comes back as it is: no kernel changes it.

    Raises:
        UserError: pydensecrf is not installed.
        ValueError: Sizes differ, a label is out of range, or the preset is unknown.
    """
    labels = np.asarray(labels)
    image, settings = _checked(image, labels.shape, preset)
    if labels.min() < 0 or labels.max() >= num_labels or num_labels > 256:
        raise ValueError(f"labels {labels.min()}..{labels.max()} for num_labels {num_labels} (at most 256)")
    if labels.min() == labels.max():
        return labels.astype(np.uint8)
    _, utils = _import_pydensecrf()
    unary = utils.unary_from_labels(
        labels.astype(np.int64), num_labels, gt_prob=LABEL_PROBABILITY, zero_unsure=False
    )
    return _infer(image, unary, settings)


def crf_from_probs(image: ArrayLike, probs: ArrayLike, *, preset: str = "voc12_segmentation") -> np.ndarray:
    """Sharpen class probabilities, as the published segmentation is tested.

    Only the classes that win at least one pixel take part; what is left of the probabilities is not
    renormalised, and is clipped to 1e-5..1 in the unary.

    Args:
        image: (H, W, 3), RGB, 0..255; an array, a tensor on the CPU, or a list, as the probabilities.
        probs: float (K, H, W), K <= 256; scores above 1 (sums of several heads) are allowed and clipped.
        preset: A name in ``PRESETS``.

    Returns:
        uint8 (H, W), 0..K-1.

    Raises:
        UserError: pydensecrf is not installed.
        ValueError: Sizes differ, a value is not finite, or the preset is unknown.
    """
    probs = np.asarray(probs)
    image, settings = _checked(image, probs.shape[1:], preset)
    if probs.ndim != 3 or len(probs) > 256 or not np.isfinite(probs).all():
        raise ValueError(f"probs must be finite and (K, H, W) with K <= 256, got {probs.shape}")
    labels = probs.argmax(axis=0)
    classes = np.unique(labels).astype(np.uint8)
    if len(classes) == 1:
        return labels.astype(np.uint8)
    _, utils = _import_pydensecrf()
    return classes[_infer(image, utils.unary_from_softmax(probs[classes]), settings)]


def _checked(image: ArrayLike, size: tuple[int, ...], preset: str) -> tuple[np.ndarray, CrfPreset]:
    if preset not in PRESETS:
        raise ValueError(f"unknown CRF preset {preset!r}; there are {', '.join(PRESETS)}")
    image = np.asarray(image)
    if image.dtype.kind in "iu" and image.size and 0 <= image.min() <= image.max() <= 255:
        image = image.astype(np.uint8, copy=False)  # a list of numbers, say
    if image.dtype != np.uint8 or image.shape != (*size, 3) or not image.size:
        raise ValueError(
            f"image must be 0..255, (H, W, 3), of the labels' size {size}, got {image.dtype} {image.shape}"
        )
    return image, PRESETS[preset]


def check_crf_installed() -> None:
    """Raise the ``UserError`` of a missing pydensecrf now rather than at the first picture."""
    _import_pydensecrf()


def _import_pydensecrf():
    try:
        from pydensecrf import densecrf, utils
    except ImportError as error:
        raise UserError(
            f"pydensecrf cannot be imported ({error}); install it with: pip install pydensecrf2==1.1 "
            "(Python 3.11 or 3.12 and a C++ compiler), or go without it: --no-crf"
        ) from None
    return densecrf, utils


def _infer(image: np.ndarray, unary: np.ndarray, settings: CrfPreset) -> np.ndarray:
    """Mean-field inference; unary (K, H*W) of negative log probabilities -> uint8 (H, W)."""
    densecrf, _ = _import_pydensecrf()
    height, width = image.shape[:2]
    field = densecrf.DenseCRF2D(width, height, len(unary))
    field.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    field.addPairwiseGaussian(sxy=settings.smooth_sxy, compat=settings.smooth_compat)
    field.addPairwiseBilateral(
        sxy=settings.appearance_sxy,
        srgb=settings.appearance_srgb,
        rgbim=np.array(image, order="C"),  # a writable copy: the module refuses read-only memory
        compat=settings.appearance_compat,
    )
    probabilities = np.asarray(field.inference(settings.iterations)).reshape(len(unary), height, width)
    return probabilities.argmax(axis=0).astype(np.uint8)
