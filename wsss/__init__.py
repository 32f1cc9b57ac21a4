"""What both stages share: data, networks' common parts, files, metrics. No training loop and no method."""

from wsss.compat import declare_torchvision_operators

declare_torchvision_operators()
