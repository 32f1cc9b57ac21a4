"""The plain vision transformer that both stages are built on.

Parameter names are the published ones (DeiT's and timm's), so that checkpoints load by name. Attention goes
through ``scaled_dot_product_attention``: no (N, N) matrix is formed. A block hands back its queries and keys,
from which whoever needs attention (stage 1's fusion) applies it without forming the matrix either.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn


class BlockRecord(NamedTuple):
    """What a block computed on the way: references, no copies."""

    query: Tensor  # (B, H, N, d), not yet scaled
    key: Tensor  # (B, H, N, d)
    attention_branch: Tensor  # (B, N, D): after the output projection, before drop-path and residual sum


class PatchEmbed(nn.Module):
    """Images (B, 3, H, W) to patch tokens (B, h*w, D), h = H // patch_size: what is left over is cropped."""

    def __init__(self, patch_size: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        maps = self.proj(images)
        return maps.flatten(2).transpose(1, 2), tuple(maps.shape[-2:])


class Attention(nn.Module):
    """Multi-head self-attention, scale d^-0.5, biased qkv."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, D) to the branch output (B, N, D), and the queries and keys (B, H, N, d)."""
        B, N, D = x.shape
        query, key, value = self.qkv(x).view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(B, N, D)), query, key


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth on both branches."""

    def __init__(self, dim: int, num_heads: int, *, norm_eps: float, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, BlockRecord]:
        branch, query, key = self.attn(self.norm1(x))
        x = x + self.drop_path(branch)
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x, BlockRecord(query, key, branch)


class VisionTransformer(nn.Module):
    """Patch embedding, prefix (class) tokens, positions, blocks, final norm.

    Args:
        embed_dim, depth, num_heads, patch_size: The backbone's sizes (``wsss.backbones``).
        image_size: Side of the square picture whose grid ``pos_embed`` holds.
        num_prefix_tokens: Class tokens before the patches: 1 in stage 2, one per class in stage 1.
        norm_eps: LayerNorm's epsilon, 1e-6 in stage 1 and 1e-5 in stage 2, as published.
        drop_path: Stochastic depth of the last block; the first has 0, linear between.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: int,
        image_size: int,
        num_prefix_tokens: int = 1,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.embed_dim, self.num_heads, self.patch_size = embed_dim, num_heads, patch_size
        self.num_prefix_tokens = num_prefix_tokens
        self.grid_side = image_size // patch_size
        self.patch_embed = PatchEmbed(patch_size, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, num_prefix_tokens, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, num_prefix_tokens + self.grid_side**2, embed_dim))
        rates = [drop_path * i / max(1, depth - 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, norm_eps=norm_eps, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.apply(_init_linear)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def positions(self, image_size: tuple[int, int], grid: tuple[int, int]) -> Tensor:
        """Position embedding (1, prefix + h*w, D) for an (H, W) picture of (h, w) patches."""
        raise NotImplementedError("each stage resizes its positions in its own published way")

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W), normalised, to tokens (B, prefix + h*w, D) and the grid (h, w)."""
        patches, grid = self.patch_embed(images)
        prefix = self.cls_token.expand(len(images), -1, -1)
        return torch.cat((prefix, patches), 1) + self.positions(tuple(images.shape[-2:]), grid), grid

    def run_blocks(self, tokens: Tensor) -> tuple[Tensor, list[BlockRecord]]:
        """Tokens after the last block, before the final norm, and every block's record."""
        records = []
        for block in self.blocks:
            tokens, record = block(tokens)
            records.append(record)
        return tokens, records


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


def resize_positions(
    patch_positions: Tensor, grid: tuple[int, int], *, mode: str, by_scale_factor: bool = False
) -> Tensor:
    """Resize the patch part of a position embedding, (1, g*g, D) to (1, h*w, D).

    Args:
        mode: ``"bicubic"`` or ``"bilinear"``, align_corners False.
        by_scale_factor: Interpolate with ``scale_factor=((h + 0.1) / g, (w + 0.1) / g)`` in place of
            ``size=``. The published stage 1 does at run time; the two differ in the last digits.
    """
    side = int(patch_positions.shape[1] ** 0.5)
    maps = patch_positions.transpose(1, 2).reshape(1, -1, side, side)
    if by_scale_factor:
        factors = tuple((n + 0.1) / side for n in grid)
        maps = F.interpolate(maps, scale_factor=factors, mode=mode, align_corners=False)
    else:
        maps = F.interpolate(maps, size=grid, mode=mode, align_corners=False)
    return maps.flatten(2).transpose(1, 2)
