"""VOC's test list has neither masks nor annotations: it can be predicted, and nothing is scored."""

import torch

from segmentation.segmenter import build_segmenter
from tests.commands import run_here
from tests.miniature import make
from wsss.checkpoint import save_checkpoint
from wsss.datasets import VOC_CLASSES, load_dataset
from wsss.io import read_mask, read_size


def test_predict(tmp_path):
    data = load_dataset("voc12", make(tmp_path / "data", "voc12", train=2, val=2))
    ids = data.image_ids("val")
    lists = data.root / "ImageSets" / "Segmentation"
    (lists / "val.txt").rename(lists / "test.txt")
    for image_id in ids:
        data.mask_path(image_id).unlink()
        (data.root / "Annotations" / f"{image_id}.xml").unlink()
    torch.manual_seed(0)
    model = build_segmenter("vit_micro_patch8_96", num_classes=21, image_size=64)
    args = {"backbone": model.backbone, "num_classes": 21, "image_size": 64}
    sizes = {"short_side": 72, "window": 64, "stride": 48}
    content = {"model": model.state_dict(), "model_args": args, "class_names": list(VOC_CLASSES)}
    save_checkpoint(tmp_path / "last.pth", content | {"preprocessing": sizes})
    run_here(
        "segmentation.predict", "--dataset", "voc12", "--data-path", tmp_path / "data", "--split", "test",
        "--checkpoint", tmp_path / "last.pth", "--output-dir", tmp_path / "out", "--workers", 0,
    )  # fmt: skip
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.png")) == ids
    for image_id in ids:
        size = read_size(data.root / "JPEGImages" / f"{image_id}.jpg")
        assert read_mask(tmp_path / "out" / f"{image_id}.png").shape == size
    assert not (tmp_path / "out" / "score.json").exists()
