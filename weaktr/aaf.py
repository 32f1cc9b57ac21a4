"""Adaptive attention fusion (AAF): one learned weight per attention head, and attention applied with them.

Nothing here forms an (N, N) matrix. Fused patch attention is only ever *applied* to a few maps, and softmax
attention applied to values is what fused attention kernels compute; the cross attention needs the rows of the
class tokens alone. The plain form stands in tests/weaktr/oracle.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.errors import UserError
from wsss.vit import BlockRecord


class AdaptiveAttentionFusion(nn.Module):
    """Weights in (0, 1) for the H heads of all L blocks, from the blocks' pooled features.

    Args:
        depth, num_heads, head_dim: L, H, d of the backbone.
        reduction: Bottleneck of ``attn_head_ffn``: int(H*L / reduction).
        feat_reduction: Bottleneck of ``attn_feat_ffn``: d // feat_reduction.
        pool: How features are pooled over tokens: ``"max"``, ``"avg"``; or ``"random"``: a fixed random
            vector takes the features' place (ablation).

    Raises:
        UserError: A reduction that is not positive, or leaves its bottleneck without a unit.
        ValueError: An unknown ``pool``.
    """

    def __init__(
        self, *, depth: int, num_heads: int, head_dim: int, reduction: float, feat_reduction: int, pool: str
    ):
        super().__init__()
        if pool not in ("max", "avg", "random"):
            raise ValueError(f"pool {pool!r}: one of max, avg, random")
        self.depth, self.num_heads, self.pool = depth, num_heads, pool
        total = depth * num_heads
        for name, value, largest in (
            ("--reduction", reduction, total), ("--feat-reduction", feat_reduction, head_dim)
        ):  # fmt: skip
            if not 0 < value <= largest:
                raise UserError(f"{name}: give above 0 and at most {largest} for this backbone, got {value}")
        hidden = int(total / reduction)
        self.attn_head_ffn = nn.Sequential(
            nn.Linear(total, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, total, bias=False),
            nn.Sigmoid(),
        )
        # no activation between the two, as published
        self.attn_feat_ffn = nn.Sequential(
            nn.Linear(head_dim, head_dim // feat_reduction), nn.Linear(head_dim // feat_reduction, 1)
        )
        if pool == "random":
            self.register_buffer("random_input", torch.randn(1, total))
            self.attn_feat_ffn.requires_grad_(False)  # unused: without gradient it would break DDP

    def forward(self, records: list[BlockRecord]) -> Tensor:
        """Blocks' records to head weights (B, H, L)."""
        B = len(records[0].attention_branch)
        if self.pool == "random":
            features = self.random_input.expand(B, -1)
        else:
            pooled = torch.stack([self._pool(r.attention_branch.detach()) for r in records], 1)  # (B, L, D)
            # Channel c belongs to "head" c % H: the head index runs fastest, not as in the attention itself.
            # The released checkpoints were trained so.
            pooled = pooled.float().unflatten(2, (-1, self.num_heads))  # (B, L, d, H)
            features = self.attn_feat_ffn(pooled.permute(0, 3, 1, 2)).flatten(1)  # (B, H*L), head-major
        return self.attn_head_ffn(features).view(B, self.num_heads, self.depth)

    def _pool(self, features: Tensor) -> Tensor:
        return features.amax(1) if self.pool == "max" else features.mean(1)


def cross_attention(
    records: list[BlockRecord], weights: Tensor, num_prefix_tokens: int, class_ids: Tensor | None = None
) -> Tensor:
    """Fused attention of class tokens to patches.

    Args:
        records: L blocks' queries and keys, (B, H, N, d); used detached.
        weights: Head weights (B, H, L); carry gradient.
        num_prefix_tokens: C, the class tokens before the patches.
        class_ids: (n,) class tokens wanted; all by default.

    Returns:
        (B, n, P): (1/HL) * sum over heads and blocks of weight * softmax attention.
    """
    fused = 0
    for block, record in enumerate(records):
        query = record.query.detach()[:, :, :num_prefix_tokens]
        if class_ids is not None:
            query = query[:, :, class_ids]
        key = record.key.detach()
        scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-2, -1)
        attention = scores.softmax(-1)[..., num_prefix_tokens:]
        fused = fused + torch.einsum("bh,bhcp->bcp", weights[..., block], attention)
    return fused / weights[0].numel()


@torch.no_grad()
def mean_patch_attention(records: list[BlockRecord], num_prefix_tokens: int, rows: int = 64) -> Tensor:
    """What a patch receives from all patches on average: the column means of patch attention.

    Training needs no more of it: the fine logits average the refined CAMs over patches, and the average of
    (attention @ CAM) is (average of attention's rows) @ CAM. Attention is detached in the published network,
    so this part has no backward pass at all.

    Args:
        records: L blocks' queries and keys, (B, H, N, d).
        rows: Query rows at a time: the (B, H, rows, N) scores are all that is ever held.

    Returns:
        (B, H, L, P) float32.
    """
    means = []
    for record in records:
        query = record.query[:, :, num_prefix_tokens:] * record.query.shape[-1] ** -0.5
        key = record.key.transpose(-2, -1)
        total = 0
        for chunk in query.split(rows, 2):
            total = total + (chunk @ key).float().softmax(-1).sum(2)
        means.append(total[..., num_prefix_tokens:] / query.shape[2])
    return torch.stack(means, 2)


def apply_patch_attention(
    records: list[BlockRecord], weights: Tensor, maps: Tensor, num_prefix_tokens: int
) -> Tensor:
    """Fused patch attention applied to maps: (1/HL) * sum of weight * softmax(q k^T / sqrt(d)) @ maps.

    The softmax runs over all N tokens; the class tokens' columns drop out because their values are zero.

    Args:
        records: L blocks' queries and keys, (B, H, N, d); used detached.
        weights: Head weights (B, H, L); carry gradient.
        maps: (B, n, P); carry gradient.

    Returns:
        (B, n, P).
    """
    n = maps.shape[1]
    head_dim = records[0].query.shape[-1]
    # The fused kernels want values as wide as queries and keys (else they fall back to the plain form
    # silently): narrow maps are padded to d, and for more maps than d the queries and keys are padded.
    width = max(head_dim, -(-n // 8) * 8)
    values = F.pad(maps.transpose(1, 2), (0, width - n, num_prefix_tokens, 0))  # (B, N, width)
    values = values.to(records[0].query.dtype).unsqueeze(1).expand(-1, weights.shape[1], -1, -1)
    refined = 0
    for block, record in enumerate(records):
        query = F.pad(record.query.detach()[:, :, num_prefix_tokens:], (0, width - head_dim))
        key = F.pad(record.key.detach(), (0, width - head_dim))
        mixed = F.scaled_dot_product_attention(query, key, values, scale=head_dim**-0.5)
        refined = refined + torch.einsum("bh,bhpc->bcp", weights[..., block], mixed[..., :n].float())
    return refined / weights[0].numel()
