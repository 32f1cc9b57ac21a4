"""Gradient-weighted element-wise transformer attention maps (arXiv 2112.02841), and two relatives.

Of every block only the class token's row of the attention matrix is formed, and the gradient is taken with
respect to that row: nothing is hooked, stored in the network, or added to its parameters' gradients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from segmentation.getam.model import Getam

START_LAYER = 6  # in the published code, for every encoder
FORMS = ("getam", "unsquared", "grad_cam")


def getam_maps(
    model: Getam, images: Tensor, labels: Tensor, *, start_layer: int = START_LAYER, form: str = "getam"
) -> Tensor:
    """Attention maps of the present classes, float32 (B, C, h, w); zero where the label is 0.

    One forward pass of the encoder, and one backward pass for the first present class of all pictures, one
    for the second, and so on: on the way to the class logits pictures do not meet.

    Args:
        images: (B, 3, H, W), normalised, sides multiples of 32.
        labels: (B, C), 0 or 1.
        start_layer: First block, from 0, whose attention is used.
        form: See ``maps_of_rows``.
    """
    with torch.inference_mode(False), torch.enable_grad():
        images = images.clone().requires_grad_()  # a graph, also where every parameter is frozen
        features = model.encode(images, rows_from=start_layer)
        logits = model.classify(features)
        prefix = model.pretrained.model.num_prefix_tokens
        ranked, classes = ranked_maps(
            features.class_rows, logits, labels, grid=features.grid, prefix=prefix, form=form
        )
    return unrank(ranked, classes, labels.shape[1])


def present_classes(labels: Tensor) -> Tensor:
    """Multi-hot labels (B, C) to their class indices in ascending order, (B, R), R the largest number of
    classes of a picture; -1 where a picture has fewer."""
    counts = (labels > 0).sum(1)
    classes = torch.argsort((labels <= 0).to(torch.uint8), dim=1, stable=True)[:, : int(counts.max())]
    return classes.masked_fill(torch.arange(classes.shape[1], device=labels.device) >= counts[:, None], -1)


def ranked_maps(
    rows: Sequence[Tensor],
    logits: Tensor,
    labels: Tensor,
    *,
    grid: tuple[int, int],
    prefix: int,
    form: str = "getam",
) -> tuple[Tensor, Tensor]:
    """Maps of the first, second, ... present class of each picture. The graph is kept.

    Args:
        rows: The class token's attention of each block, (B, heads, 1, N), in the graph of ``logits``.
        logits: Class logits (B, C).
        labels: (B, C), 0 or 1.
        grid: (h, w) of the patches.
        prefix: Tokens before the patches.

    Returns:
        Maps (B, R, h, w), detached, zero where there is no such class; and ``present_classes``.
    """
    classes = present_classes(labels)
    maps = torch.zeros(*classes.shape, *grid, device=logits.device)
    for rank in range(classes.shape[1]):
        present = classes[:, rank] >= 0
        score = logits.gather(1, classes[:, rank : rank + 1].clamp(min=0))[present].sum()
        gradients = torch.autograd.grad(score, rows, retain_graph=True)
        found = maps_of_rows(rows, gradients, form)[:, prefix:].unflatten(1, grid)
        maps[:, rank] = torch.where(present[:, None, None], found, 0)
    return maps, classes


def maps_of_rows(rows: Sequence[Tensor], gradients: Sequence[Tensor], form: str) -> Tensor:
    """Sum over blocks of attention A weighted by its gradient G, both of the class token's row: (B, N).

    ``"getam"``: mean_heads(relu(G A)) mean_heads(relu(G)). ``"unsquared"``: without the second factor, an
    ablation of the paper. ``"grad_cam"``: relu(mean_heads(mean_tokens(G) A)), Grad-CAM taken to attention.
    """
    if form not in FORMS:
        raise ValueError(f"form {form!r}: one of {', '.join(FORMS)}")
    total = 0
    for row, gradient in zip(rows, gradients, strict=True):
        A, G = row.detach().float()[:, :, 0], gradient.float()[:, :, 0]
        if form == "grad_cam":
            total = total + (G.mean(2, keepdim=True) * A).mean(1).relu()
            continue
        weighted = (G * A).relu().mean(1)
        total = total + (weighted * G.relu().mean(1) if form == "getam" else weighted)
    return total.relu()


def unrank(maps: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """(B, R, h, w) of the classes (B, R) to (B, C, h, w), zero elsewhere."""
    B, _, h, w = maps.shape
    spread = torch.zeros(B, num_classes + 1, h, w, device=maps.device)  # the last takes what is no class
    index = classes.masked_fill(classes < 0, num_classes)[:, :, None, None].expand_as(maps)
    return spread.scatter(1, index, maps)[:, :num_classes]
