"""Make the quick start's starting weights: a small ViT that knows textured objects, but not its classes.

Plays ImageNet's part. The pictures are drawn by ``wsss.shapes``, with all of its outlines and textures in any
combination, and in the six bands of hues that lie between those of its classes. The network learns which
bands are in a picture (class token) and which band covers each patch (patch tokens). These patch labels are
denser supervision than ImageNet's image labels: docs/results.md says what image labels gave.

Run through scripts/pretrain_tiny.sh. Continues where it was stopped, with the same result on one machine.
"""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from wsss.backbones import get_backbone
from wsss.checkpoint import load_checkpoint, save_checkpoint
from wsss.config import REQUIRED, option, result_options, run_command
from wsss.errors import UserError
from wsss.io import atomic_write
from wsss.optim import warmup_cosine_rate
from wsss.parallel import parallel_map
from wsss.run import sha256
from wsss.shapes import OBJECTS, OUTLINES, TEXTURES, Kind, draw
from wsss.transforms import normalise
from wsss.vit import VisionTransformer

log = logging.getLogger(__name__)

BACKBONE = "vit_micro_patch8_96"
HUES = tuple((k + 0.5) / 6 for k in range(6))  # half way between those of wsss.shapes.CLASSES
RADIUS = (15, 38)  # of the objects, pixels
WARMUP_STEPS, SAVE_EVERY, HELD_OUT = 100, 500, 1000


@dataclass(frozen=True, kw_only=True)
class Config:
    output: Path = option(REQUIRED, "the file of weights, .safetensors")
    pictures: int = option(20_000, "drawn for training", minimum=1)
    steps: int = option(3_500, "training steps", minimum=1)
    batch_size: int = option(32, "pictures per step", minimum=1)
    patch_labels: bool = option(True, "learn from patch labels too; without, from image labels alone")
    lr: float = option(1e-3, "peak learning rate of AdamW", above=0)
    seed: int = option(504, "of pictures, initialisation and order", minimum=0)
    workers: int = option(2, "processes that draw", minimum=0, changes_result=False)


class PretrainedViT(VisionTransformer):
    """The encoder with two linear heads, which are not kept."""

    def __init__(self):
        backbone = get_backbone(BACKBONE)
        super().__init__(**backbone.architecture, image_size=backbone.image_size)
        self.picture_head = nn.Linear(self.embed_dim, len(HUES))
        self.patch_head = nn.Linear(self.embed_dim, len(HUES) + 1)

    def positions(self, image_size, grid) -> Tensor:
        return self.pos_embed

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the bands in the picture (B, 6), and of background and bands per patch (B, 7, P)."""
        tokens = super().forward(images)
        patches = self.patch_head(tokens[:, 1:]).float().transpose(1, 2)
        return self.picture_head(tokens[:, 0]).float(), patches


def draw_sample(number: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture uint8 (96, 96, 3), and the share of each patch that background and bands cover, (7, 12, 12)."""
    rng = np.random.default_rng((seed, 1, number))  # not the stream of wsss.shapes
    bands = rng.permutation(len(HUES))[: rng.choice(3, p=OBJECTS) + 1]
    kinds = [Kind(rng.choice(OUTLINES), rng.choice(TEXTURES), HUES[band]) for band in bands]
    picture = draw(kinds, rng, radius=RADIUS)
    side, patch = get_backbone(BACKBONE).image_size, get_backbone(BACKBONE).patch_size
    top, left = (int(rng.integers(n - side + 1)) for n in picture.mask.shape)
    window = slice(top, top + side), slice(left, left + side)
    mask = np.append(0, bands + 1)[picture.mask[window]]
    covered = mask[None] == np.arange(len(HUES) + 1)[:, None, None]
    shares = covered.reshape(len(covered), side // patch, patch, side // patch, patch).mean((2, 4))
    return picture.image[window], shares.astype(np.float32)


def draw_samples(count: int, config: Config) -> tuple[Tensor, Tensor]:
    """``count`` pictures uint8 (N, 96, 96, 3) and their patches' shares (N, 7, 12, 12)."""
    work = functools.partial(draw_sample, seed=config.seed)
    drawn = parallel_map(work, range(count), workers=config.workers)
    images, shares = zip(*tqdm(drawn, total=count, desc="drawing", unit="picture"), strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(shares))


def make_batch(images: Tensor, shares: Tensor, indices: Tensor, turns: Tensor | None):
    """Normalised images (B, 3, 96, 96) and shares (B, 7, P), mirrored and transposed as three bits say."""
    backbone = get_backbone(BACKBONE)
    statistics = (backbone.pixel_mean, backbone.pixel_std)
    x = torch.stack([normalise(images[i].numpy(), *statistics) for i in indices])
    y = shares[indices]
    if turns is not None:
        if turns[0]:
            x, y = x.flip(3), y.flip(3)
        if turns[1]:
            x, y = x.flip(2), y.flip(2)
        if turns[2]:
            x, y = x.transpose(2, 3), y.transpose(2, 3)
    return x, y.flatten(2)


def loss_of(model: PretrainedViT, x: Tensor, shares: Tensor, patch_labels: bool = True) -> Tensor:
    """Bands in the picture (binary cross-entropy), of the class token and of the mean over patches or, with
    patch labels, of the class token and for each patch (cross-entropy with its shares)."""
    with torch.autocast("cpu", torch.bfloat16):
        in_picture, in_patch = model(x)
    present = (shares[:, 1:].sum(2) > 0).float()
    loss = F.binary_cross_entropy_with_logits(in_picture, present)
    if patch_labels:
        return loss + F.cross_entropy(in_patch, shares)
    return loss + F.binary_cross_entropy_with_logits(in_patch[:, 1:].mean(2), present)


def unfinished_path(config: Config) -> Path:
    return config.output.with_name(f".{config.output.name}.unfinished.pth")


def read_unfinished(config: Config) -> dict | None:
    """What an earlier start left, if any."""
    if not unfinished_path(config).is_file():
        return None
    state = load_checkpoint(unfinished_path(config))
    if state["options"] != result_options(config):
        raise UserError(
            f"{unfinished_path(config)}: of a run with other options; delete it, or give the same"
        )
    return state


def train(model: PretrainedViT, images: Tensor, shares: Tensor, config: Config, state: dict | None) -> None:
    """All steps that are left, from the ``state`` of an earlier start if there is one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=0.05)
    done = 0
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
        log.info("continuing at step %d", done)
    steps = tqdm(range(done, config.steps), initial=done, total=config.steps, desc="training", unit="step")
    for step in steps:
        if step % SAVE_EVERY == 0 and step > done:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"step": step, "options": result_options(config)}
            save_checkpoint(unfinished_path(config), state)
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine_rate(
                step, peak=config.lr, steps=config.steps, warmup_steps=WARMUP_STEPS
            )
        draws = torch.Generator().manual_seed(config.seed * 1_000_000 + step)
        indices = torch.randint(len(images) - HELD_OUT, (config.batch_size,), generator=draws)
        turns = torch.randint(2, (3,), generator=draws)
        x, y = make_batch(images, shares, indices, turns)
        loss = loss_of(model, x, y, config.patch_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            steps.set_postfix(loss=f"{loss.item():.3f}")


@torch.no_grad()
def evaluate(model: PretrainedViT, images: Tensor, shares: Tensor) -> dict[str, float]:
    """Share of right answers on the held-out pictures."""
    model.eval()
    x, shares = make_batch(images, shares, torch.arange(len(images) - HELD_OUT, len(images)), None)
    outputs = [model(part) for part in x.split(100)]
    in_picture, in_patch = (torch.cat(part) for part in zip(*outputs, strict=True))
    right = in_patch.argmax(1) == shares.argmax(1)
    on_object = shares.argmax(1) > 0
    return {
        "bands": ((in_picture > 0) == (shares[:, 1:].sum(2) > 0)).float().mean().item(),
        "object patches": right[on_object].float().mean().item(),
        "background patches": right[~on_object].float().mean().item(),
    }


def main(config: Config) -> None:
    state = read_unfinished(config)
    images, shares = draw_samples(config.pictures + HELD_OUT, config)
    torch.manual_seed(config.seed)
    model = PretrainedViT()
    train(model, images, shares, config, state)
    for name, value in evaluate(model, images, shares).items():
        log.info("%s: %.1f%% right, %d pictures that were not trained on", name, 100 * value, HELD_OUT)
    weights = {k: v.contiguous() for k, v in model.state_dict().items() if "_head." not in k}
    with atomic_write(config.output) as temporary:
        save_file(
            weights, temporary, metadata={"made_by": "scripts/pretrain_tiny.sh"}
        )  # two keys have no order
        temporary.chmod(0o644)  # safetensors makes files that only their owner reads
    unfinished_path(config).unlink(missing_ok=True)
    log.info("wrote %s, sha256 %s", config.output, sha256(config.output))
    log.info("next: bash scripts/quickstart.sh")


if __name__ == "__main__":
    run_command(main, Config, prog="scripts/pretrain_tiny.py", description=__doc__)
