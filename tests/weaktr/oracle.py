"""WeakTr in its plain form, from the published equations: every attention matrix is formed and kept.

Slow and hungry on purpose, and sharing no code with ``weaktr``: it reads the network's parameters by name.
"""

import math

import torch
import torch.nn.functional as F


def plain_forward(model, images, *, attention="fused", pool="max"):
    """Class, coarse and fine logits (B, C), CAMs and fine CAMs (B, C, h, w), head weights (B, H*L)."""
    p = dict(model.named_parameters()) | dict(model.named_buffers())
    C, D, H = model.num_classes, model.embed_dim, model.num_heads
    L, patch = len(model.blocks), model.patch_size
    B, _, height, width = images.shape
    h, w = height // patch, width // patch
    # patches by hand: floor-cropped, channel-major
    cut = images[:, :, : h * patch, : w * patch].reshape(B, 3, h, patch, w, patch)
    cut = cut.permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, -1)
    x = cut @ p["patch_embed.proj.weight"].reshape(D, -1).T + p["patch_embed.proj.bias"]
    x = torch.cat([p["cls_token"].repeat(B, 1, 1), x], 1) + plain_positions(
        p["pos_embed"], C, height, width, h, w
    )
    attentions, features = [], []
    for i in range(L):
        n = f"blocks.{i}."
        y = F.layer_norm(x, (D,), p[n + "norm1.weight"], p[n + "norm1.bias"], 1e-6)
        qkv = y @ p[n + "attn.qkv.weight"].T + p[n + "attn.qkv.bias"]
        q, k, v = (t.reshape(B, -1, H, D // H).transpose(1, 2) for t in qkv.split(D, -1))
        a = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(D // H), -1)
        f = (a @ v).transpose(1, 2).reshape(B, -1, D) @ p[n + "attn.proj.weight"].T + p[n + "attn.proj.bias"]
        attentions.append(a)
        features.append(f)
        x = x + f
        y = F.layer_norm(x, (D,), p[n + "norm2.weight"], p[n + "norm2.bias"], 1e-6)
        y = F.gelu(y @ p[n + "mlp.fc1.weight"].T + p[n + "mlp.fc1.bias"])
        x = x + y @ p[n + "mlp.fc2.weight"].T + p[n + "mlp.fc2.bias"]
    class_logits = x[:, :C].mean(-1)
    maps = F.conv2d(x[:, C:].transpose(1, 2).reshape(B, D, h, w), p["head.weight"], p["head.bias"], padding=1)
    weights = plain_head_weights(p, [f.detach() for f in features], B, H, L, D, pool)
    stacked = torch.stack([a.detach() for a in attentions], 2)  # (B, H, L, N, N)
    fused = (stacked * weights.reshape(B, H, L, 1, 1)).mean((1, 2))
    cross, patches = fused[:, :C, C:], fused[:, C:, C:]
    coarse = maps.detach().flatten(2).relu()
    cams = {"fused": cross * coarse, "coarse": coarse, "cross": cross}[attention]
    fine = torch.einsum("bpq,bcq->bcp", patches, cams)
    return {
        "class_logits": class_logits,
        "coarse_logits": maps.mean((2, 3)),
        "fine_logits": fine.mean(2),
        "cams": cams.reshape(B, C, h, w),
        "fine_cams": fine.reshape(B, C, h, w),
        "head_weights": weights,
    }


def plain_positions(pos_embed, C, height, width, h, w):
    side = math.isqrt(pos_embed.shape[1] - C)
    if height == width and h * w == side * side:
        return pos_embed
    grid = pos_embed[:, C:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((h + 0.1) / side, (w + 0.1) / side), mode="bicubic")
    assert grid.shape[-2:] == (h, w)
    return torch.cat([pos_embed[:, :C], grid.permute(0, 2, 3, 1).reshape(1, h * w, -1)], 1)


def plain_head_weights(p, features, B, H, L, D, pool):
    n = "adaptive_attention_fusion."
    if pool == "random":
        logits = p[n + "random_input"].repeat(B, 1)
    else:
        logits = torch.zeros(B, H * L)
        for block, f in enumerate(features):
            pooled = f.max(1).values if pool == "max" else f.mean(1)
            for head in range(H):
                channels = pooled[:, [c for c in range(D) if c % H == head]]
                y = channels @ p[n + "attn_feat_ffn.0.weight"].T + p[n + "attn_feat_ffn.0.bias"]
                y = y @ p[n + "attn_feat_ffn.1.weight"].T + p[n + "attn_feat_ffn.1.bias"]
                logits[:, head * L + block] = y[:, 0]
    hidden = torch.relu(logits @ p[n + "attn_head_ffn.0.weight"].T)
    return torch.sigmoid(hidden @ p[n + "attn_head_ffn.2.weight"].T)
