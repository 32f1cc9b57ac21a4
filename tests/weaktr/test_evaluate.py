"""weaktr.evaluate: its numbers against those of the commands whose files it reads; files that do not fit."""

import dataclasses
import json
import shutil

import pytest

from tests.commands import error_line, run_here
from weaktr.describe import chosen_by
from wsss.released import RELEASED
from wsss.run import sha256

MODULE = "weaktr.evaluate"


def make_all(data, checkpoint, out, *, split="train", select="published"):
    """CAMs, thresholds and masks of a list, as scripts/evaluate.sh makes them."""
    common = ("--data-path", data, "--split", split)
    run_here(
        "weaktr.generate_cam",
        *common,
        "--checkpoint",
        checkpoint,
        "--output-dir",
        out / "cams" / split,
        "--compact",
    )
    cams = ("--cam-dir", out / "cams" / split, "--workers", 0)
    run_here("weaktr.search_threshold", *common, *cams, "--select", select, "--output-dir", out / "threshold")
    run_here(
        "weaktr.make_masks", *common, *cams, "--threshold-file", out / "threshold" / "threshold.json",
        "--output-dir", out / "masks" / split,
    )  # fmt: skip
    return out


def options(data, checkpoint, made, out, *, split="train"):
    return (
        "--data-path", data, "--checkpoint", checkpoint, "--cam-dir", made / "cams" / split,
        "--threshold-file", made / "threshold" / "threshold.json", "--pred-dir", made / "masks" / split,
        "--output-dir", out, "--split", split, "--workers", 0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(miniature, trained, tmp_path_factory):
    """Read only."""
    pytest.importorskip("pydensecrf")
    return make_all(miniature, trained / "best.pth", tmp_path_factory.mktemp("made"))


def test_rows_are_the_numbers_of_the_commands(made, miniature, trained, tmp_path, capsys):
    capsys.readouterr()
    run_here(MODULE, *options(miniature, trained / "best.pth", made, tmp_path))
    printed = capsys.readouterr().out
    record = json.loads((tmp_path / "evaluation.json").read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows) == ["cam", "cam_best", "cam_crf"]
    threshold = json.loads((made / "threshold" / "threshold.json").read_text())
    masks = json.loads((made / "masks" / "train" / "score.json").read_text())
    at = threshold["curve"]["threshold"].index(0.43)
    assert rows["cam"]["mean_iou"] == threshold["curve"]["mean_iou"][at] == masks["before_crf"]["mean_iou"]
    assert rows["cam_best"]["mean_iou"] == threshold["best_mean_iou"] >= rows["cam"]["mean_iou"]
    assert rows["cam_crf"]["mean_iou"] == masks["mean_iou"] != rows["cam"]["mean_iou"]
    for name, expected in (("cam", masks["before_crf"]), ("cam_crf", masks)):
        found = json.loads((tmp_path / name / "score.json").read_text())
        assert found["classes"] == expected["classes"] and found["threshold"] == 0.43
    best = f"{threshold['best_threshold']:.2f}"
    assert rows["cam"]["what"] == "fused CAM, threshold 0.43 as published"
    assert rows["cam_best"]["what"] == f"fused CAM, its best threshold {best}, chosen on these masks"
    assert rows["cam_crf"]["what"] == "fused CAM, threshold 0.43, CRF: the published pseudo-masks"
    assert {row["published"] for row in rows.values()} == {None}
    assert record["checkpoint_sha256"] == sha256(trained / "best.pth")
    assert (record["backbone"], record["backbone_from"]) == (
        "vit_micro_patch8_96",
        "recorded in the checkpoint",
    )
    assert (record["split"], record["images"], record["scales"], record["mirrors"]) == (
        "train",
        16,
        [1.0, 1.2],
        True,
    )
    assert record["crf_preset"] == "voc12_cam" and record["mask_dir"] == str(miniature / "masks")
    assert "chosen on masks" in record["checkpoint_chosen_by"]
    assert f"| cam_crf  | {rows['cam_crf']['what']} | {100 * masks['mean_iou']:5.2f} |         - |" in printed
    assert "checkpoint chosen by: " in printed and "pixel mean: 0.5 0.5 0.5" in printed


def test_published_number_of_a_released_network(made, miniature, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEAKTR_CHECKPOINTS", str(tmp_path / "checkpoints"))
    row = dataclasses.replace(
        RELEASED["weaktr_cam_voc12_deit_s"],
        name="tiny_cam",
        data="folder",
        filename="tiny.pth",
        published={"train": 45.6},
    )
    monkeypatch.setitem(RELEASED, "tiny_cam", row)
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(trained / "best.pth", tmp_path / "checkpoints" / "tiny.pth")
    run_here(MODULE, *options(miniature, "tiny_cam", made, tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [row["published"] for row in record["rows"]] == [None, None, 0.456]
    assert record["released"] == "tiny_cam"
    # masks at another threshold are not the published ones
    other = make_all(miniature, trained / "best.pth", tmp_path / "other", select="best")
    run_here(MODULE, *options(miniature, "tiny_cam", other, tmp_path / "out2"))
    record = json.loads((tmp_path / "out2" / "evaluation.json").read_text())
    assert [row["published"] for row in record["rows"]] == [None] * 3
    assert record["rows"][2]["what"].endswith(", CRF") and "0.43" not in record["rows"][2]["what"]
    segmenter = RELEASED["weaktr_voc12_deit_s"]
    shutil.copy(trained / "best.pth", tmp_path / "checkpoints" / segmenter.filename)
    line = error_line(capsys, MODULE, *options(miniature, segmenter.name, made, tmp_path / "out3"))
    assert f"{segmenter.name} is no network of stage 1" in line


def test_without_masks(miniature_without_masks, trained, tmp_path, capsys):
    pytest.importorskip("pydensecrf")
    made = make_all(miniature_without_masks, trained / "best.pth", tmp_path / "made", split="val")
    run_here(
        MODULE, *options(miniature_without_masks, trained / "best.pth", made, tmp_path / "out", split="val")
    )
    assert "No score: not every picture of val has a mask in" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [row["mean_iou"] for row in record["rows"]] == [None] * 3
    assert record["rows"][1]["what"] == "fused CAM, its best threshold, chosen on these masks"


def test_files_that_do_not_belong_together(made, miniature, trained, tmp_path, capsys):
    def line_of(broken, checkpoint=trained / "best.pth", **how):
        return error_line(capsys, MODULE, *options(miniature, checkpoint, broken, tmp_path / "out", **how))

    assert "cams/train: CAMs of another checkpoint" in line_of(made, trained / "last.pth")
    broken = shutil.copytree(made, tmp_path / "broken")
    config = broken / "masks" / "train" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"cams_config_sha256": "0" * 64}))
    assert "masks/train: masks made of other CAMs" in line_of(broken)
    config.write_text(json.dumps(content | {"split": "val"}))
    assert "config.json: masks of another list (val, wanted train)" in line_of(broken)
    config.write_text(json.dumps(content | {"command": "wsss.score"}))
    assert "config.json: not written by weaktr.make_masks" in line_of(broken)
    config.unlink()
    assert "masks/train/config.json: no such file" in line_of(broken)
    config.write_text(json.dumps(content))
    threshold = broken / "threshold" / "threshold.json"
    found = json.loads(threshold.read_text())
    threshold.write_text(json.dumps(found | {"split": "val"}))
    assert "threshold.json: measured on another list" in line_of(broken)
    threshold.write_text(json.dumps({k: v for k, v in found.items() if k != "curve"}))
    assert "threshold.json: holds no scores at the threshold 0.43" in line_of(broken)


def test_chosen_by():
    best = {"epoch": 3, "score": 0.5, "measure": "cam_miou", "split": "train", "every": 4}
    assert (
        chosen_by({"best": best}) == "epoch 3, cam_miou 50.00% on train, every 4th picture; chosen on masks"
    )
    best |= {"measure": "sample_map_class", "split": "val", "every": 1}
    assert chosen_by({"best": best}) == "epoch 3, sample_map_class 50.00% on val"
    assert chosen_by({"best": best | {"measure": "epoch"}}) == "the last epoch, 3"
    assert chosen_by({"epoch": 59}) == "not recorded, epoch 59" and chosen_by({}) == "not recorded"
