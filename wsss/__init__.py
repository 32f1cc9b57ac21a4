"""What both stages share: data, networks' common parts, files, metrics. No training loop and no method."""

import os

# Large tensors on huge pages: page faults were 15% of a training step on a CPU. torch reads this once, so it
# is set before torch is imported.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from wsss.compat import declare_torchvision_operators

declare_torchvision_operators()
