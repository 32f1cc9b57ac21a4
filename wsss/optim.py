"""Learning-rate schedules, as pure functions: nothing to save, nothing that a restart could lose."""

import math


def published_stage1_rate(epoch: int, *, peak: float, epochs: int, warmup_epochs: int = 5) -> float:
    """Stage 1's published schedule, by epoch.

    r(t) = 1e-6 + t (p - 1e-6) / w during the warm-up, else 1e-5 + (p - 1e-5)(1 + cos(pi t / T)) / 2, where t
    is not shifted by the warm-up. It was stepped after each epoch, with the epoch's own number: epoch 0 runs
    at 1e-6 and epoch e at r(e - 1).
    """
    return shifted_stage1_rate(max(epoch - 1, 0), peak=peak, epochs=epochs, warmup_epochs=warmup_epochs)


def shifted_stage1_rate(epoch: int, *, peak: float, epochs: int, warmup_epochs: int = 5) -> float:
    """The same curve, epoch e at r(e): what was presumably meant."""
    if epoch < warmup_epochs:
        return 1e-6 + epoch * (peak - 1e-6) / warmup_epochs
    return 1e-5 + (peak - 1e-5) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def warmup_cosine_rate(step: int, *, peak: float, steps: int, warmup_steps: int) -> float:
    """By step: linear from peak / w to the peak over w steps, then a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return peak * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, steps - warmup_steps))) / 2


def polynomial_rate(step: int, *, peak: float, floor: float, steps: int, power: float = 0.9) -> float:
    """Stage 2's published schedule, by step: from the peak to the floor, (1 - step / steps)^power."""
    return floor + (peak - floor) * (1 - step / steps) ** power
