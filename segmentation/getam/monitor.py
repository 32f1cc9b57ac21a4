"""What is looked at while GETAM trains: the evaluation, and what TensorBoard shows."""

import time

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from segmentation.getam.inference import predict_probs
from segmentation.getam.model import Getam
from segmentation.getam.plan import Config, Plan
from wsss.distributed import rank, shard
from wsss.io import read_image, read_mask
from wsss.metrics import ConfusionMatrix
from wsss.visualize import overlay, side_by_side


def validate(config: Config, spec, plan: Plan, model: Getam) -> dict:
    """mIoU on one square of the crop's size, without CRF."""
    started = time.time()
    model.eval()
    confusion = ConfusionMatrix(plan.table.num_fg_classes + 1)
    for image_id in tqdm(shard(plan.val_ids), "evaluating", unit="img", disable=rank() != 0, leave=False):
        labels, mask = _predicted(config, spec, plan, model, image_id)
        confusion.update(labels, mask)
    device = next(model.parameters()).device
    scores = confusion.all_sum(device).scores()
    seconds = round(time.time() - started, 1)
    return {"val_miou": scores.mean_iou, "val_pixel_accuracy": scores.pixel_accuracy, "eval_seconds": seconds}


def _predicted(config: Config, spec, plan: Plan, model: Getam, image_id: str):
    """Labels of a picture and its mask, both in the network's numbers."""
    image = read_image(spec.image_path(image_id), exif=config.exif)
    probs = predict_probs(model, image, squares=(config.crop_size,), amp_dtype=plan.amp_dtype)
    return probs.argmax(0).cpu().numpy(), plan.table.network_map(read_mask(spec.mask_path(image_id)))


def write_look(writer: SummaryWriter | None, step: int, values: dict[str, float]) -> None:
    if writer is not None:
        for name, value in values.items():
            writer.add_scalar(name if name == "lr" else f"step/{name}", value, step)


def show(writer: SummaryWriter, config: Config, spec, plan: Plan, model: Getam, record: dict) -> None:
    """The section in TensorBoard; pictures where it was evaluated."""
    for name, value in record.items():
        if isinstance(value, float) and name not in ("train_seconds", "eval_seconds"):
            writer.add_scalar(name if name.startswith("val_") else f"section/{name}", value, record["step"])
    if "val_miou" in record:
        model.eval()
        for image_id in plan.val_ids[: config.overlays]:
            image = read_image(spec.image_path(image_id), exif=config.exif)
            labels, mask = _predicted(config, spec, plan, model, image_id)
            picture = side_by_side(image, overlay(image, labels), overlay(image, mask))
            writer.add_image(f"predictions/{image_id}", picture, record["step"], dataformats="HWC")
    writer.flush()
