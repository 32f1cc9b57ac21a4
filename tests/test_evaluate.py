"""scripts/evaluate.sh: it finds the kind of a checkpoint and ends in a table, or in one line of error."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.commands import ROOT
from tests.released_layouts import drawn_state, manifest


def evaluate(*arguments, cwd=None, **variables):
    cleared = (
        "BACKBONE",
        "SPLIT",
        "ROWS",
        "GPUS",
        "WORKERS",
        "VOC_MASKS",
        "EVALUATE_OPTIONS",
        "PREDICT_OPTIONS",
        "OVERWRITE",
    )
    known = {k: v for k, v in os.environ.items() if k not in cleared}
    return subprocess.run(
        ["bash", str(ROOT / "scripts" / "evaluate.sh"), *map(str, arguments)],
        env={**known, "WEAKTR_PYTHON": sys.executable, **variables}, cwd=cwd,
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "3 or 4 arguments are needed, 0 were given"),
        (("a", "folder", "b", "c", "d"), "3 or 4 arguments are needed, 5 were given"),
        (("a", "cityscapes", "b"), "unknown data set cityscapes"),
    ],
)
def test_nonsense_is_refused(arguments, words):
    done = evaluate(*arguments)
    assert done.returncode == 2 and words in done.stderr and "usage: bash scripts/evaluate.sh" in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


def error_of(done):
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    errors = [line for line in done.stderr.split("\n") if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def test_what_cannot_be_evaluated_is_one_line(miniature, tmp_path):
    where = ("folder", miniature, tmp_path / "out")
    line = error_of(evaluate("weaktr_voc12_vit_s", *where, WEAKTR_CHECKPOINTS=str(tmp_path)))
    assert "bash scripts/download_checkpoints.sh weaktr_voc12_vit_s" in line
    names = [name for name in manifest("getam_vitb", 20) if name.endswith(("cls_token", "cls_head.bias"))]
    torch.save({"model": {name: torch.zeros(1) for name in names}}, tmp_path / "getam.pth")
    line = error_of(evaluate(tmp_path / "getam.pth", *where))
    assert "getam.pth: not a checkpoint of GETAM (pretrained.model.cls_token of another shape)" in line
    torch.save(drawn_state(manifest("segmenter_deit_small_vit_small", 3)), tmp_path / "bare.pth")
    line = error_of(evaluate(tmp_path / "bare.pth", *where))
    assert "give --backbone, one of deit_small_patch16_224" in line and "(BACKBONE=NAME before" in line
    assert not (tmp_path / "out").exists()


def test_stage_2_in_two_processes_with_the_default_folder(segmenter, miniature, tmp_path):
    pytest.importorskip("pydensecrf")
    variables = {"ROWS": "single_last multi_crf_fused", "GPUS": "2", "WORKERS": "0"}
    done = evaluate(segmenter / "last.pth", "folder", miniature, cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "runs" / "evaluate" / "last"
    record = json.loads((out / "evaluation.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["single_last", "multi_crf_fused"]
    assert all(0 < row["mean_iou"] < 1 for row in record["rows"]) and record["images"] == 6
    assert json.loads((out / "environment.json").read_text())["processes"] == 2
    assert done.stdout.count("| multi_crf_fused |") == 1
    again = evaluate(segmenter / "last.pth", "folder", miniature, cwd=tmp_path, **variables)
    assert again.returncode == 0 and "done before" in again.stdout
    assert again.stdout.count("| multi_crf_fused |") == 1  # the table is shown all the same
    assert "done: the table is in runs/evaluate/last/evaluation.md" in again.stdout


def test_stage_1(trained, miniature, tmp_path):
    pytest.importorskip("pydensecrf")
    out = tmp_path / "with space"
    done = evaluate(trained / "best.pth", "folder", miniature, out, WORKERS="0", SPLIT="val")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((out / "evaluation.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["cam", "cam_best", "cam_crf"]
    assert (record["split"], record["images"]) == ("val", 6)
    assert (
        len(list((out / "cams" / "val").glob("*.npz")))
        == len(list((out / "masks" / "val").glob("*.png")))
        == 6
    )
    masks = json.loads((out / "masks" / "val" / "score.json").read_text())
    assert record["rows"][2]["mean_iou"] == masks["mean_iou"] and masks["threshold"] == 0.43


def test_getam(getam, miniature, tmp_path):
    pytest.importorskip("pydensecrf")
    out = tmp_path / "out"
    variables = {"WORKERS": "0", "PREDICT_OPTIONS": "--squares 64 96"}
    done = evaluate(getam / "last.pth", "folder", miniature, out, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((out / "evaluation.json").read_text())
    assert [row["name"] for row in record["rows"]] == ["squares", "squares_crf"]
    for row in record["rows"]:
        score = json.loads((out / row["name"] / "score.json").read_text())
        assert row["mean_iou"] == score["mean_iou"] and row["published"] is None
        assert "squares 64 96" in row["what"] and "published test" not in row["what"]
    assert (record["backbone"], record["saliency"]) == ("vit_micro", "without saliency maps")
    assert done.stdout.count("| squares_crf |") == 1
    again = evaluate(getam / "last.pth", "folder", miniature, out, **variables)
    assert again.returncode == 0 and again.stdout.count("done before") == 3
