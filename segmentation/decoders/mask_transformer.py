"""The mask transformer of Segmenter (arXiv 2105.05633): class embeddings read the patches, and score them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsss.vit import Block, init_linear

NORM_EPS = 1e-5
DEPTH = 2


class MaskTransformer(nn.Module):
    """Patch tokens (B, P, D) to tokens after each block, and those to scores (B, P, K).

    Its blocks are plain whatever the encoder's are: biased attention, GELU, no LayerScale, no rotary
    positions, no stochastic depth.

    Args:
        embed_dim: D.
        num_classes: K, background included.
        dropout: On attention weights, after attention, and in the MLP; 0.1 as published.
    """

    def __init__(self, embed_dim: int, num_classes: int, *, dropout: float = 0.1):
        super().__init__()
        self.num_classes = num_classes
        self.cls_emb = nn.Parameter(torch.zeros(1, num_classes, embed_dim))
        scale = embed_dim**-0.5
        self.proj_patch = nn.Parameter(scale * torch.randn(embed_dim, embed_dim))
        self.proj_classes = nn.Parameter(scale * torch.randn(embed_dim, embed_dim))
        num_heads = max(1, embed_dim // 64)
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, norm_eps=NORM_EPS, dropout=dropout) for _ in range(DEPTH)
        )
        self.proj_dec = nn.Linear(embed_dim, embed_dim)
        self.decoder_norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)
        self.mask_norm = nn.LayerNorm(num_classes, eps=NORM_EPS)
        self.apply(init_linear)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)

    def forward(self, patches: Tensor) -> list[Tensor]:
        """Tokens (B, P + K, D) after each block, for ``scores``."""
        tokens = self.proj_dec(patches)
        tokens = torch.cat((tokens, self.cls_emb.expand(len(tokens), -1, -1)), 1)
        outputs = []
        for block in self.blocks:
            tokens, _ = block(tokens)
            outputs.append(tokens)
        return outputs

    def scores(self, tokens: Tensor) -> Tensor:
        """Read a block's output (B, P + K, D): cosines of patches and classes, normalised over classes."""
        tokens = self.decoder_norm(tokens)
        patches, classes = tokens.split((tokens.shape[1] - self.num_classes, self.num_classes), 1)
        patches = F.normalize(patches @ self.proj_patch, dim=-1)
        classes = F.normalize(classes @ self.proj_classes, dim=-1)
        return self.mask_norm(patches @ classes.transpose(1, 2))
