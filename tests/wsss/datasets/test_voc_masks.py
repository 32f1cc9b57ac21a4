"""--voc-masks through the commands: other masks, other scores, and which runs may be continued."""

import json

import numpy as np
import pytest

from tests.commands import error_line, run_here
from tests.miniature import make
from wsss.cam_files import write_cams
from wsss.datasets import load_dataset
from wsss.io import read_mask, write_mask


@pytest.fixture
def two_masks(tmp_path):
    """A tree whose SegmentationClass has background in every other row; predictions are the other masks."""
    root = make(tmp_path / "data", "voc12", train=4, val=3)
    data = load_dataset("voc12", root)
    for image_id in (*data.image_ids("train"), *data.image_ids("val")):
        mask = read_mask(data.mask_path(image_id))
        write_mask(tmp_path / "pred" / f"{image_id}.png", np.where(mask == 255, 0, mask))
        mask[::2] = 0
        write_mask(data.root / "SegmentationClass" / f"{image_id}.png", mask)
    return tmp_path


def score(folder, *options, dataset="voc12") -> dict:
    where = ["--data-path", folder / "data", "--pred-dir", folder / "pred", "--output-dir", folder / "out"]
    run_here("wsss.score", "--dataset", dataset, *where, "--workers", "0", *options)
    return json.loads((folder / "out" / "score.json").read_text())


def test_scores_differ_with_the_masks_and_name_them(two_masks):
    usual = score(two_masks)
    own = score(two_masks, "--voc-masks", "SegmentationClass", "--overwrite")
    assert usual["mean_iou"] == pytest.approx(1)
    assert own["mean_iou"] < 0.9
    root = two_masks / "data" / "VOCdevkit" / "VOC2012"
    assert [s["mask_dir"] for s in (usual, own)] == [
        str(root / "SegmentationClassAug"),
        str(root / "SegmentationClass"),
    ]
    assert str(root / "SegmentationClass") in (two_masks / "out" / "score.md").read_text()


def test_official_lists_are_scored_without_augmented_masks(two_masks):
    root = two_masks / "data" / "VOCdevkit" / "VOC2012"
    before = score(two_masks, "--voc-masks", "SegmentationClass", "--split", "train")
    (root / "SegmentationClassAug").rename(root / "gone")
    again = score(two_masks, "--voc-masks", "SegmentationClass", "--split", "train")
    assert again == before and again["images"] == 2


def test_other_masks_are_another_run(two_masks, capsys):
    score(two_masks)
    config = json.loads((two_masks / "out" / "config.json").read_text())
    assert config["voc_masks"] == "SegmentationClassAug"
    line = error_line(
        capsys, "wsss.score", "--dataset", "voc12", "--data-path", two_masks / "data", "--pred-dir",
        two_masks / "pred", "--output-dir", two_masks / "out", "--voc-masks", "SegmentationClass",
    )  # fmt: skip
    assert "voc_masks was 'SegmentationClassAug', now 'SegmentationClass'" in line


@pytest.mark.parametrize("layout", ["folder", "coco14"])
def test_runs_from_before_the_option_are_continued(layout, tmp_path):
    """Of the other layouts: their config.json has no such entry, then and now."""
    data = load_dataset(layout, make(tmp_path / "data", layout, train=1, val=2))
    for image_id in data.image_ids("val"):
        mask = read_mask(data.mask_path(image_id))
        write_mask(tmp_path / "pred" / f"{image_id}.png", np.where(mask == 255, 0, mask))
    first = score(tmp_path, dataset=layout)
    assert "voc_masks" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert score(tmp_path, dataset=layout) == first


def test_the_option_is_refused_for_other_layouts(miniature, tmp_path, capsys):
    line = error_line(
        capsys, "wsss.score", "--data-path", miniature, "--pred-dir", miniature / "masks",
        "--output-dir", tmp_path / "out", "--voc-masks", "SegmentationClass",
    )  # fmt: skip
    assert "--voc-masks SegmentationClass: is for --dataset voc12 only" in line
    assert not (tmp_path / "out").exists()


def test_threshold_and_pseudo_masks_are_scored_on_the_masks_that_were_named(two_masks, capsys):
    """The option reaches the commands of the method, and the commands that they propose."""
    data = load_dataset("voc12", two_masks / "data", voc_masks="SegmentationClass")
    for image_id in data.image_ids("train"):
        mask = read_mask(two_masks / "pred" / f"{image_id}.png")
        classes = np.unique(mask[mask > 0])
        maps = np.stack([(mask == k).astype(np.float32) for k in classes])
        write_cams(two_masks / "cams" / f"{image_id}.npz", maps, classes.astype(np.int64) - 1)
    found = {}
    for folder in ("SegmentationClassAug", "SegmentationClass"):
        common = ["--dataset", "voc12", "--data-path", two_masks / "data", "--voc-masks", folder]
        common += ["--split", "train", "--cam-dir", two_masks / "cams", "--workers", "0"]
        out = two_masks / folder
        capsys.readouterr()
        run_here("weaktr.search_threshold", *common, "--output-dir", out / "threshold")
        run_here(
            "weaktr.make_masks", *common, "--output-dir", out / "masks", "--threshold", "0.5", "--no-crf"
        )
        proposed = [line for line in capsys.readouterr().out.split("\n") if line.startswith("next: ")]
        assert len(proposed) == 2
        named = folder == "SegmentationClass"
        assert all((" --voc-masks SegmentationClass " in line) == named for line in proposed)
        threshold = json.loads((out / "threshold" / "threshold.json").read_text())
        found[folder] = json.loads((out / "masks" / "score.json").read_text())
        assert found[folder]["mask_dir"] == str(data.root / folder)
        assert threshold["best_mean_iou"] == pytest.approx(found[folder]["mean_iou"], abs=1e-6)
    assert found["SegmentationClassAug"]["mean_iou"] == pytest.approx(1)
    assert found["SegmentationClass"]["mean_iou"] < 0.9
