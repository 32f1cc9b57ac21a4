"""The plain vision transformer that both stages are built on.

Parameter names are the published ones (DeiT's and timm's), so that checkpoints load by name. Attention goes
through ``scaled_dot_product_attention``: no (N, N) matrix is formed, but for small ones where that is faster
(``attend``). A block hands back its queries and keys, from which whoever needs attention (stage 1's fusion)
applies it without forming the matrix either; and, asked for, the class token's row of it (GETAM).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

PLAIN_ATTENTION_SCORES = 2**24  # B H N N; the scores of a block that training keeps are some 100 MB then


class BlockRecord(NamedTuple):
    """What a block computed on the way: references, no copies."""

    query: Tensor  # (B, H, N, d), not yet scaled
    key: Tensor  # (B, H, N, d)
    attention_branch: Tensor  # (B, N, D): after the output projection, before drop-path and residual sum
    first_rows: Tensor | None = None  # (B, H, n, N): softmaxed attention of the first n tokens, if asked for


class PatchEmbed(nn.Module):
    """Images (B, 3, H, W) to patch tokens (B, h*w, D), h = H // patch_size: what is left over is cropped."""

    def __init__(self, patch_size: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        maps = self.proj(images)
        return maps.flatten(2).transpose(1, 2), tuple(maps.shape[-2:])


class RotaryTables(nn.Module):
    """EVA-02's rotary positions: one angle per patch and pair of features, rows' half then columns' half.

    The buffers are the published tables of the grid that the network was built for; another grid's are
    computed when it is met. Positions run over 0..16 whatever the grid, as in pre-training on 16x16 patches.

    Args:
        head_dim: Features per head, a multiple of 4.
        grid: (h, w) of the buffers.
    """

    PRETRAINING_SIDE = 16

    def __init__(self, head_dim: int, grid: tuple[int, int]):
        super().__init__()
        self.head_dim, self.grid = head_dim, grid
        self._other_grids: dict[tuple, tuple[Tensor, Tensor]] = {}
        cos, sin = self._compute(grid)
        self.register_buffer("freqs_cos", cos)
        self.register_buffer("freqs_sin", sin)

    def forward(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Cosines and sines (h*w, head_dim) for a grid of (h, w) patches."""
        if grid == self.grid:
            return self.freqs_cos, self.freqs_sin
        key = (grid, self.freqs_cos.device)
        if key not in self._other_grids:
            if len(self._other_grids) > 16:  # pictures of every size pass in inference
                self._other_grids.clear()
            tables = self._compute(grid)
            self._other_grids[key] = tuple(table.to(self.freqs_cos.device) for table in tables)
        return self._other_grids[key]

    def _compute(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        half = self.head_dim // 2
        frequencies = 1.0 / 10000 ** (torch.arange(0, half, 2)[: half // 2].float() / half)
        per_axis = []
        for side in grid:
            positions = torch.arange(side) / side * self.PRETRAINING_SIDE
            per_axis.append(torch.outer(positions, frequencies).repeat_interleave(2, 1))  # (side, half)
        h, w = grid
        rows, columns = per_axis[0][:, None].expand(h, w, half), per_axis[1][None].expand(h, w, half)
        angles = torch.cat((rows, columns), 2).reshape(h * w, self.head_dim)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the pairs of neighbouring features of the last tokens of x (B, H, N, d); earlier ones, the class
    token, stay. ``tables`` are cosines and sines (P, d) of the P last tokens."""
    cos, sin = tables
    prefix, patches = x.split((x.shape[2] - len(cos), len(cos)), 2)
    pairs = patches.unflatten(3, (-1, 2))
    turned = torch.stack((-pairs[..., 1], pairs[..., 0]), -1).flatten(3)
    return torch.cat((prefix, (patches * cos + turned * sin).to(x.dtype)), 2)


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """Softmax attention of (B, H, N, d), with ``dropout`` on its weights.

    In bfloat16 training on a CPU the fused kernel's backward takes three to seven times as long as the plain
    form (torch 2.13, N = 145 and 197), so there the matrix is formed, as long as it is small.
    Its scores are rounded to bfloat16, which the fused kernel does not do.
    """
    plain = query.device.type == "cpu" and query.dtype == torch.bfloat16 and query.requires_grad
    if not plain or query.shape[:3].numel() * key.shape[2] > PLAIN_ATTENTION_SCORES:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return F.dropout(scores.softmax(-1), dropout) @ value


class Attention(nn.Module):
    """Multi-head self-attention, scale d^-0.5.

    Args:
        dropout: On attention weights and after the output projection.
        key_bias: False is EVA-02's form: ``q_bias`` and ``v_bias`` in place of ``qkv.bias``.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0, key_bias: bool = True):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=key_bias)
        self.q_bias = self.v_bias = None
        if not key_bias:
            self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None, *, first_rows: int = 0
    ) -> BlockRecord:
        """(B, N, D) to the branch output, and what it was computed from.

        Args:
            rotary: Cosines and sines (P, d) for the last P tokens.
            first_rows: Form the attention matrix's rows of that many tokens, so that gradients with respect
                to them can be taken. The other rows stay unformed; the result is the same.
        """
        B, N, D = x.shape
        bias = self.qkv.bias
        if self.q_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        query, key, value = qkv.view(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        dropout = self.dropout if self.training else 0.0
        if first_rows:
            first, others = query[:, :, :first_rows], query[:, :, first_rows:]
            rows = (first * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)).softmax(-1)
            mixed = torch.cat((F.dropout(rows, dropout) @ value, attend(others, key, value, dropout)), 2)
        else:
            rows, mixed = None, attend(query, key, value, dropout)
        branch = self.proj(mixed.transpose(1, 2).reshape(B, N, D))
        return BlockRecord(query, key, F.dropout(branch, dropout), rows)


class Mlp(nn.Module):
    """Two layers with GELU; dropout after each."""

    def __init__(self, dim: int, hidden_dim: int, *, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(hidden), self.dropout, self.training)


class SwiGlu(nn.Module):
    """EVA-02's MLP: SiLU of one half of ``w12`` gates the other; hidden width int(8/3 D)."""

    def __init__(self, dim: int):
        super().__init__()
        hidden_dim = int(4 * 2 / 3 * dim)
        self.w12 = nn.Linear(dim, 2 * hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    """DINOv2's factor per feature on a branch; starts at 1e-5."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with stochastic depth on both branches.

    Args:
        norm_eps: LayerNorm's epsilon.
        drop_path: Probability of leaving a branch out, per sample.
        dropout: See ``Attention`` and ``Mlp``.
        layer_scale: DINOv2's; the state gains ``ls1.gamma`` and ``ls2.gamma``.
        eva: EVA-02's attention bias and SwiGLU.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        norm_eps: float,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        layer_scale: bool = False,
        eva: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, dropout=dropout, key_bias=not eva)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = SwiGlu(dim) if eva else Mlp(dim, 4 * dim, dropout=dropout)
        self.ls1 = LayerScale(dim) if layer_scale else nn.Identity()
        self.ls2 = LayerScale(dim) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None, *, first_rows: int = 0
    ) -> tuple[Tensor, BlockRecord]:
        record = self.attn(self.norm1(x), rotary, first_rows=first_rows)
        x = x + self.drop_path(self.ls1(record.attention_branch))
        x = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return x, record


class VisionTransformer(nn.Module):
    """Patch embedding, prefix (class) tokens, positions, blocks, final norm.

    Args:
        embed_dim, depth, num_heads, patch_size: The backbone's sizes (``wsss.backbones``).
        image_size: Side of the square picture whose grid ``pos_embed`` holds.
        num_prefix_tokens: Class tokens before the patches: 1 in stage 2, one per class in stage 1.
        norm_eps: LayerNorm's epsilon, 1e-6 in stage 1 and 1e-5 in stage 2, as published.
        drop_path: Stochastic depth of the last block; the first has 0, linear between.
        layer_scale, eva: What DINOv2 and EVA-02 have in their blocks (``Block``); EVA-02 also has rotary
            positions, whose tables are in the state at the encoder and at every block, as published.
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
        layer_scale: bool = False,
        eva: bool = False,
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
            Block(embed_dim, num_heads, norm_eps=norm_eps, drop_path=rate, layer_scale=layer_scale, eva=eva)
            for rate in rates
        )
        self.rope = None
        if eva:
            self.rope = RotaryTables(embed_dim // num_heads, (self.grid_side, self.grid_side))
            for block in self.blocks:
                block.attn.rope = self.rope  # one module under many names
        self.norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.apply(init_linear)
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

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), normalised, to tokens after the final norm, (B, prefix + h*w, D)."""
        tokens, grid = self.embed(images)
        rotary = None if self.rope is None else self.rope(grid)
        for block in self.blocks:
            tokens, _ = block(tokens, rotary)
        return self.norm(tokens)


def init_linear(module: nn.Module) -> None:
    """Truncated normal weights of deviation 0.02, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
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
