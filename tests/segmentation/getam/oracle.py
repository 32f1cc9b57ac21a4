"""Plain numpy forms of what GETAM computes, pixel by pixel, from the papers and the published behaviour."""

import numpy as np


def pamr(image: np.ndarray, masks: np.ndarray, iterations: int, dilations) -> np.ndarray:
    """``image`` (3, H, W), ``masks`` (K, H, W), float64."""
    H, W = image.shape[1:]
    neighbours = [(dy, dx) for d in dilations for dy in (-d, 0, d) for dx in (-d, 0, d) if (dy, dx) != (0, 0)]

    def at(maps, y, x):
        return maps[:, min(max(y, 0), H - 1), min(max(x, 0), W - 1)]

    weights = np.zeros((len(neighbours), H, W))
    for y in range(H):
        for x in range(W):
            around = np.array([at(image, y + dy, x + dx) for dy, dx in neighbours])  # (n, 3)
            samples = np.concatenate([around, np.repeat(image[None, :, y, x], len(dilations), 0)])
            sigma = samples.std(0, ddof=1)
            logits = (-np.abs(image[:, y, x] - around) / (1e-8 + 0.1 * sigma)).mean(1)
            weights[:, y, x] = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    for _ in range(iterations):
        refined = np.zeros_like(masks)
        for y in range(H):
            for x in range(W):
                for n, (dy, dx) in enumerate(neighbours):
                    refined[:, y, x] += weights[n, y, x] * at(masks, y + dy, x + dx)
        masks = refined
    return masks


def opening(mask: np.ndarray, side: int) -> np.ndarray:
    """OpenCV's opening of a bool (H, W) with an even square: erosion, then dilation, both with the anchor at
    side // 2 and neither reflected, so that what is left lies a pixel further down and right."""
    H, W = mask.shape
    reach = range(-(side // 2), side - side // 2)
    eroded, dilated = np.zeros_like(mask), np.zeros_like(mask)
    for y in range(H):
        for x in range(W):
            window = [
                mask[y + dy, x + dx] for dy in reach for dx in reach if 0 <= y + dy < H and 0 <= x + dx < W
            ]
            eroded[y, x] = all(window)
    for y in range(H):
        for x in range(W):
            dilated[y, x] = any(
                eroded[y + dy, x + dx] for dy in reach for dx in reach if 0 <= y + dy < H and 0 <= x + dx < W
            )
    return dilated


def complete(labels: np.ndarray, scores: np.ndarray, classes, quantile: float):
    """Label completion, pixel by pixel."""
    H, W = labels.shape
    result, claimed = labels.copy(), np.zeros((H, W), bool)
    for score, index in zip(scores, classes, strict=True):
        values = sorted(
            score[y, x] for y in range(H) for x in range(W) if labels[y, x] == 0 and score[y, x] > 0
        )
        element = int(quantile * len(values))
        if element == 0:
            continue
        for y in range(H):
            for x in range(W):
                if labels[y, x] == 0 and not claimed[y, x] and score[y, x] > values[element]:
                    result[y, x], claimed[y, x] = index + 1, True
    kept = opening(result > 0, 10)
    result[~kept] = 0
    return result, claimed & kept


def kernel(levels: np.ndarray, sigma_xy: float, sigma_rgb: float) -> np.ndarray:
    """W (N, N) of ``levels`` (3, H, W), pair by pair."""
    H, W = levels.shape[1:]
    points = [(y, x) for y in range(H) for x in range(W)]
    found = np.zeros((len(points), len(points)))
    for i, (y, x) in enumerate(points):
        for j, (v, u) in enumerate(points):
            near = ((y - v) ** 2 + (x - u) ** 2) / sigma_xy**2
            alike = ((levels[:, y, x] - levels[:, v, u]) ** 2).sum() / sigma_rgb**2
            found[i, j] = np.exp(-(near + alike) / 2)
    return found


def gate(probs: np.ndarray, crop_mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(B, K, H, W), (B, H, W), (B, H, W) to (B, H, W)."""
    found = np.maximum(crop_mask - probs.max(1), 0)
    found[labels == 255] = 1
    return found


def dense_energy(probs, levels, crop_mask, labels, sigma_xy=50.0, sigma_rgb=15.0) -> float:
    """-(1/B) sum S gate (W S)."""
    total = 0.0
    gates = gate(probs, crop_mask, labels)
    for b in range(len(probs)):
        W = kernel(levels[b], sigma_xy, sigma_rgb)
        for k in range(probs.shape[1]):
            S = (probs[b, k] * crop_mask[b]).ravel()
            total += (S * gates[b].ravel() * (W @ S)).sum()
    return -total / len(probs)
