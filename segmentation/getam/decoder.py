"""The DPT decoder (arXiv 2103.13413) in GETAM's form: reassembly, fusion, channel attention, head.

Submodules stand at the published names, so that checkpoints load by name.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReadoutProject(nn.Module):
    """Every patch token with the class token behind it, (B, h*w, 2D), to (B, h*w, D)."""

    def __init__(self, dim: int):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU())

    def forward(self, class_token: Tensor, patches: Tensor) -> Tensor:
        return self.project(torch.cat((patches, class_token.expand_as(patches)), -1))


class Reassemble(nn.Sequential):
    """Tokens of a block to a feature map: read-out, 1x1 convolution, and a step in resolution.

    The published indices are 0 (read-out), 3 (1x1) and 4 (resize); 1 and 2 are its reshaping, without state.

    Args:
        dim: D of the tokens.
        channels: Of the map.
        factor: 4 or 2, transposed convolution of that stride; 1, nothing; -2, 3x3 convolution of stride 2.
    """

    def __init__(self, dim: int, channels: int, factor: int):
        layers = [ReadoutProject(dim), nn.Identity(), nn.Identity(), nn.Conv2d(dim, channels, 1)]
        if factor > 1:
            layers.append(nn.ConvTranspose2d(channels, channels, factor, stride=factor))
        elif factor == -2:
            layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
        super().__init__(*layers)

    def forward(self, class_token: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Class token (B, 1, D), patches (B, h*w, D)."""
        x = self[0](class_token, patches).transpose(1, 2).unflatten(2, grid)
        for layer in list(self)[3:]:
            x = layer(x)
        return x


class ResidualConvUnit(nn.Module):
    """ReLU, 3x3 convolution, batch norm, twice; plus the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(x.relu()))
        return self.bn2(self.conv2(out.relu())) + x


class FeatureFusion(nn.Module):
    """Adds a lateral map to the deeper path, refines, and doubles the resolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        self.resConfUnit1 = ResidualConvUnit(channels)
        self.resConfUnit2 = ResidualConvUnit(channels)

    def forward(self, x: Tensor, lateral: Tensor | None = None) -> Tensor:
        if lateral is not None:
            x = x + self.resConfUnit1(lateral)
        return self.out_conv(_double(self.resConfUnit2(x)))


class ChannelAttention(nn.Module):
    """``cam_module``: two convolutions, their channels weighted by their own averages; plus the input."""

    REDUCTION = 16

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(1, channels // self.REDUCTION)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False),
            nn.Sigmoid(),
        )
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        weights = self.fc(y.mean((2, 3)))
        return y * weights[:, :, None, None] + x


class Scratch(nn.Module):
    """What DPT trains from nothing: laterals, fusion, head.

    Args:
        in_channels: Of the four feature maps, from fine to coarse.
        channels: Of the fusion.
        num_classes: Background included.
    """

    def __init__(self, in_channels: Sequence[int], channels: int, num_classes: int):
        super().__init__()
        for number, width in enumerate(in_channels, 1):
            setattr(self, f"layer{number}_rn", nn.Conv2d(width, channels, 3, padding=1, bias=False))
            setattr(self, f"refinenet{number}", FeatureFusion(channels))
        self.refinenet4.resConfUnit1.requires_grad_(False)  # the deepest level has no lateral
        self.output_conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Dropout(0.1, False),
            nn.Conv2d(channels, num_classes, 1),
        )

    def fuse(self, features: Sequence[Tensor]) -> Tensor:
        """Four maps, strides 4 to 32, to one of stride 2, (B, channels, H/2, W/2)."""
        path = None
        for number in (4, 3, 2, 1):
            lateral = getattr(self, f"layer{number}_rn")(features[number - 1])
            fusion = getattr(self, f"refinenet{number}")
            path = fusion(lateral) if path is None else fusion(path, lateral)
        return path

    def head(self, x: Tensor) -> Tensor:
        """(B, channels, H/2, W/2) to logits (B, K, H, W)."""
        return _double(self.output_conv(x).float())


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
