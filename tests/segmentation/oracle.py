"""Stage 2's network, clipping and windows in their plain form, from the published equations.

Slow on purpose, in float64, with loops and explicit attention matrices; shares no code with the packages: it
reads parameters by name. Also lists the names and shapes of a released state, and makes one.
"""

import itertools
import math
import sys
import zlib

import numpy as np
import torch

EPS = 1e-5  # every LayerNorm's


# ------------------------------------------------------------------------------------------ the network


def plain_logits(parameters, images, *, heads):
    """Logits (B, K, H, W) after each of the decoder's blocks, float64.

    Args:
        parameters: Name -> tensor, of a state or of ``named_parameters``. They tell family and sizes.
        heads: Of the encoder's attention: the one size that no tensor tells.
    """
    p = {k: v.double() for k, v in parameters.items()}
    images = images.double()
    D, P = p["encoder.patch_embed.proj.weight"].shape[0], p["encoder.patch_embed.proj.weight"].shape[-1]
    B, _, height, width = images.shape
    h, w = math.ceil(height / P), math.ceil(width / P)
    padded = torch.zeros(B, 3, h * P, w * P, dtype=torch.float64)
    padded[:, :, :height, :width] = images
    cut = padded.reshape(B, 3, h, P, w, P).permute(0, 2, 4, 1, 3, 5).reshape(B, h * w, -1)
    x = cut @ p["encoder.patch_embed.proj.weight"].reshape(D, -1).T + p["encoder.patch_embed.proj.bias"]
    x = torch.cat([p["encoder.cls_token"].repeat(B, 1, 1), x], 1)
    x = x + plain_positions(p["encoder.pos_embed"], h, w)
    tables = None
    if "encoder.blocks.0.attn.q_bias" in p:
        tables = rotary_tables(h, w, D // heads)
    for i in range(depth_of(p, "encoder")):
        x = plain_block(p, f"encoder.blocks.{i}.", x, heads, tables)
    x = plain_norm(p, "encoder.norm", x)[:, 1:]
    x = x @ p["decoder.proj_dec.weight"].T + p["decoder.proj_dec.bias"]
    K = p["decoder.cls_emb"].shape[1]
    x = torch.cat([x, p["decoder.cls_emb"].repeat(B, 1, 1)], 1)
    logits = []
    for i in range(depth_of(p, "decoder")):
        x = plain_block(p, f"decoder.blocks.{i}.", x, max(1, D // 64), None)
        y = plain_norm(p, "decoder.decoder_norm", x)
        patches = y[:, : h * w] @ p["decoder.proj_patch"]
        classes = y[:, h * w :] @ p["decoder.proj_classes"]
        patches = patches / patches.square().sum(-1, keepdim=True).sqrt()
        classes = classes / classes.square().sum(-1, keepdim=True).sqrt()
        scores = plain_norm(p, "decoder.mask_norm", torch.einsum("bpd,bkd->bpk", patches, classes))
        maps = scores.reshape(B, h, w, K).permute(0, 3, 1, 2)
        logits.append(plain_bilinear(maps, (h * P, w * P))[..., :height, :width])
    return logits


def depth_of(p, part):
    return len({k.split(".")[2] for k in p if k.startswith(f"{part}.blocks.")})


def plain_norm(p, name, x):
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + EPS).sqrt() * p[name + ".weight"] + p[name + ".bias"]


def plain_block(p, n, x, heads, tables):
    B, N, D = x.shape
    y = plain_norm(p, n + "norm1", x) @ p[n + "attn.qkv.weight"].T
    if tables is None:
        y = y + p[n + "attn.qkv.bias"]
    q, k, v = y.split(D, -1)
    if tables is not None:
        q, v = q + p[n + "attn.q_bias"], v + p[n + "attn.v_bias"]
    q, k, v = (t.reshape(B, N, heads, D // heads).transpose(1, 2) for t in (q, k, v))
    if tables is not None:
        q, k = plain_rotation(q, *tables), plain_rotation(k, *tables)
    a = (q @ k.transpose(2, 3) / math.sqrt(D // heads)).exp()
    a = a / a.sum(-1, keepdim=True)
    y = (a @ v).transpose(1, 2).reshape(B, N, D) @ p[n + "attn.proj.weight"].T + p[n + "attn.proj.bias"]
    x = x + y * p.get(n + "ls1.gamma", 1)
    y = plain_norm(p, n + "norm2", x)
    if n + "mlp.w12.weight" in p:
        y = y @ p[n + "mlp.w12.weight"].T + p[n + "mlp.w12.bias"]
        hidden = p[n + "mlp.w3.weight"].shape[1]
        gate, value = y[..., :hidden], y[..., hidden:]
        y = gate / (1 + (-gate).exp()) * value
        y = y @ p[n + "mlp.w3.weight"].T + p[n + "mlp.w3.bias"]
    else:
        y = y @ p[n + "mlp.fc1.weight"].T + p[n + "mlp.fc1.bias"]
        y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
        y = y @ p[n + "mlp.fc2.weight"].T + p[n + "mlp.fc2.bias"]
    return x + y * p.get(n + "ls2.gamma", 1)


def rotary_tables(h, w, head_dim):
    """Cosines and sines (h*w, head_dim), float64: first half by row, second by column, in pairs."""
    angles = torch.zeros(h * w, head_dim, dtype=torch.float64)
    half = head_dim // 2
    for row, column, i in itertools.product(range(h), range(w), range(half // 2)):
        frequency = 1 / 10000 ** (2 * i / half)
        for feature in (2 * i, 2 * i + 1):
            angles[row * w + column, feature] = row / h * 16 * frequency
            angles[row * w + column, half + feature] = column / w * 16 * frequency
    return angles.cos(), angles.sin()


def plain_rotation(x, cos, sin):
    """Turn neighbours (x0, x1) by the angle: (x0 cos - x1 sin, x1 cos + x0 sin); the class token stays."""
    patches = x[:, :, 1:]
    even, odd = patches[..., 0::2], patches[..., 1::2]
    turned = torch.zeros_like(patches)
    turned[..., 0::2] = even * cos[:, 0::2] - odd * sin[:, 0::2]
    turned[..., 1::2] = odd * cos[:, 1::2] + even * sin[:, 1::2]
    return torch.cat([x[:, :, :1], turned], 2)


def plain_positions(pos_embed, h, w):
    side = math.isqrt(pos_embed.shape[1] - 1)
    grid = pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = plain_bilinear(grid, (h, w))
    return torch.cat([pos_embed[:, :1], grid.permute(0, 2, 3, 1).reshape(1, h * w, -1)], 1)


def plain_bilinear(maps, size):
    """(..., H, W) to (..., *size), between pixel centres, no antialiasing; edges repeat."""
    rows, columns = (bilinear_weights(old, new) for old, new in zip(maps.shape[-2:], size, strict=True))
    return rows @ maps.double() @ columns.T


def bilinear_weights(old, new):
    weights = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        at = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        below = int(at)
        weights[i, below] += 1 - (at - below)
        if at > below:
            weights[i, below + 1] += at - below
    return weights


# -------------------------------------------------------------------------------------- released states


def published_shapes(family, *, width, depth, num_classes, side, heads, patch=16):
    """Names and shapes of the published state.

    Args:
        family: "deit", "vit", "dinov2" or "eva02".
        side: Patches along a side of the crop.
    """
    D, K = width, num_classes

    def linear(name, outputs, inputs):
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def norm(name, size=D):
        return {f"{name}.weight": (size,), f"{name}.bias": (size,)}

    def plain(n):
        shapes = norm(n + "norm1") | linear(n + "attn.qkv", 3 * D, D) | linear(n + "attn.proj", D, D)
        return shapes | norm(n + "norm2") | linear(n + "mlp.fc1", 4 * D, D) | linear(n + "mlp.fc2", D, 4 * D)

    def rope(n):
        return {f"{n}rope.freqs_{kind}": (side * side, D // heads) for kind in ("cos", "sin")}

    def eva(n):
        hidden = int(8 / 3 * D)
        shapes = norm(n + "norm1") | norm(n + "norm2") | {n + "attn.q_bias": (D,), n + "attn.v_bias": (D,)}
        shapes |= {n + "attn.qkv.weight": (3 * D, D)} | linear(n + "attn.proj", D, D) | rope(n + "attn.")
        return shapes | linear(n + "mlp.w12", 2 * hidden, D) | linear(n + "mlp.w3", D, hidden)

    e, d = "encoder.", "decoder."
    shapes = {e + "cls_token": (1, 1, D), e + "pos_embed": (1, 1 + side * side, D)}
    shapes |= {e + "patch_embed.proj.weight": (D, 3, patch, patch), e + "patch_embed.proj.bias": (D,)}
    for i in range(depth):
        n = f"{e}blocks.{i}."
        shapes |= eva(n) if family == "eva02" else plain(n)
        if family == "dinov2":
            shapes |= {n + "ls1.gamma": (D,), n + "ls2.gamma": (D,)}
    if family == "eva02":
        shapes |= rope(e)
    shapes |= norm(e + "norm") | linear(e + "head", 1000, D)
    shapes |= {d + "cls_emb": (1, K, D), d + "proj_patch": (D, D), d + "proj_classes": (D, D)}
    for i in range(2):
        shapes |= plain(f"{d}blocks.{i}.")
    return shapes | linear(d + "proj_dec", D, D) | norm(d + "decoder_norm") | norm(d + "mask_norm", K)


def random_tensor(name, shape):
    """Values that follow from the name, large enough that every part of a network matters."""
    values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    leaf = name.rsplit(".", 1)[-1]
    if len(shape) > 1:
        tokens = leaf in ("cls_token", "pos_embed", "cls_emb")
        values *= 0.3 if tokens else 1.2 / math.sqrt(math.prod(shape[1:]))
    elif leaf in ("weight", "gamma"):
        values = 1 + 0.3 * values
    else:
        values *= 0.3
    return torch.from_numpy(values.astype(np.float32))


def released_state(shapes, tensor_for=random_tensor):
    """A state of these names and shapes, with rotary tables where they belong."""
    state, tables = {}, {}
    for name, shape in shapes.items():
        kind = name.rsplit(".", 1)[-1]
        if kind.startswith("freqs_"):
            if not tables:
                side = math.isqrt(shape[0])
                cos, sin = rotary_tables(side, side, shape[1])
                tables = {"freqs_cos": cos.float(), "freqs_sin": sin.float()}
            state[name] = tables[kind].clone()
        else:
            state[name] = tensor_for(name, shape)
    return state


# ---------------------------------------------------------------------------------------------- clipping


def plain_clipping(pixel_loss, start, patch):
    """numpy (B, H, W) to the clipped map, and where the gradient stays; pixel by pixel, float64."""
    B, height, width = pixel_loss.shape
    total = 0.0
    for value in pixel_loss.ravel():
        total += float(value)
    mean = total / pixel_loss.size
    clipped, kept = pixel_loss.astype(np.float64), np.ones(pixel_loss.shape, bool)
    if mean > start:
        return clipped, kept
    for top in range(0, height, patch):
        for left in range(0, width, patch):
            places = [
                (b, y, x)
                for b in range(B)
                for y in range(top, min(top + patch, height))
                for x in range(left, min(left + patch, width))
            ]
            threshold = max(mean, math.fsum(float(pixel_loss[place]) for place in places) / len(places))
            for place in places:
                if float(pixel_loss[place]) > threshold:
                    clipped[place], kept[place] = threshold, False
    return clipped, kept


# ----------------------------------------------------------------------------------------------- windows


def plain_starts(side, window, stride):
    """Walk along the side until a window reaches the edge, and draw that one back to be flush with it."""
    starts, at = [], 0
    while at + window < side:
        starts.append(at)
        at += stride
    return [*starts, side - window]


def plain_window_probs(network, image, *, window, stride, output_size, flipped=False):
    """One picture (3, H, W), one window at a time, to probabilities (K, *output_size), float64.

    Args:
        network: Normalised (1, 3, window, window) to logits (1, K, window, window).
    """
    _, height, width = image.shape
    if height < window and height <= width:
        image = plain_bilinear(image, (window, window * width // height)).float()
    elif width < window and width < height:
        image = plain_bilinear(image, (window * height // width, window)).float()
    _, height, width = image.shape
    found = [[[] for _ in range(width)] for _ in range(height)]  # the logits that each pixel got
    for top in plain_starts(height, window, stride):
        for left in plain_starts(width, window, stride):
            logits = network(image[None, :, top : top + window, left : left + window])[0].double().numpy()
            for y in range(window):
                for x in range(window):
                    found[top + y][left + x].append(logits[:, y, x])
    mean = torch.from_numpy(np.array([[sum(values) / len(values) for values in row] for row in found]))
    logits = plain_bilinear(mean.permute(2, 0, 1), output_size)
    if flipped:
        logits = logits.flip(2)
    exponentials = logits.exp()
    return exponentials / exponentials.sum(0)


# ---------------------------------------------------------------------------------------- recorded cases


def recorded_rule(folder):
    """The module that fills weights and makes inputs of the recorded cases."""
    sys.path.insert(0, str(folder))
    try:
        import rule
    finally:
        sys.path.pop(0)
    return rule


def summary(values, expected):
    """What a recorded summary of as many samples holds: size, mean, deviation, largest value, samples."""
    flat = values.detach().flatten().numpy()
    samples = flat[np.linspace(0, flat.size - 1, len(expected) - 4).astype(int)]
    return np.concatenate([[flat.size, flat.mean(), flat.std(), np.abs(flat).max()], samples])


def assert_summary(values, expected, limit=2e-4):
    """Equal to a recorded summary within ``limit`` of the largest absolute value."""
    found = summary(values, expected)
    assert found[0] == expected[0]
    assert np.abs(found[1:] - expected[1:]).max() <= limit * expected[3]


def assert_close(found, expected, limit=2e-4):
    """Equal within ``limit`` of the largest absolute value."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= limit * expected.abs().max()


def pictures(*shape, seed=1):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
