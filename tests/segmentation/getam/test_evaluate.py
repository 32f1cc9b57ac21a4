"""segmentation.getam.evaluate: the table, the published number's place, and what does not belong together."""

import json

import pytest

from segmentation.getam import evaluate
from tests.commands import error_line, run_here
from wsss.released import RELEASED

MODULE = "segmentation.getam.evaluate"


@pytest.fixture(scope="module")
def predicted(getam, miniature, tmp_path_factory):
    """Two folders of predictions, without and with CRF."""
    folder = tmp_path_factory.mktemp("predicted")
    given = ("--data-path", miniature, "--checkpoint", getam / "last.pth", "--squares", 64, "--workers", 0)
    for name, crf in (("squares", ()), ("squares_crf", ("--crf",))):
        run_here("segmentation.getam.predict", *given, *crf, "--output-dir", folder / name)
    return folder


def arguments(predicted, getam, miniature, out):
    return (
        "--data-path", miniature, "--checkpoint", getam / "last.pth", "--pred-dir", predicted / "squares",
        "--crf-dir", predicted / "squares_crf", "--output-dir", out,
    )  # fmt: skip


def test_the_table(predicted, getam, miniature, tmp_path, capsys):
    run_here(MODULE, *arguments(predicted, getam, miniature, tmp_path))
    record = json.loads((tmp_path / "evaluation.json").read_text())
    for row in record["rows"]:
        score = json.loads((predicted / row["name"] / "score.json").read_text())
        assert row["mean_iou"] == score["mean_iou"]
    assert record["images"] == 6 and record["split"] == "val" and record["released"] is None
    text = capsys.readouterr().out
    assert "| squares_crf | squares 64, CRF getam |" in text and "saliency: without saliency maps" in text


def test_the_published_number_stands_beside_the_published_test_only(
    predicted, getam, miniature, tmp_path, monkeypatch
):
    """As if the file were the released hybrid, and as if these squares were the published ones."""
    row = RELEASED["getam_voc12_hybrid"]
    monkeypatch.setattr(evaluate, "find_released", lambda text: (getam / "last.pth", row))
    monkeypatch.setattr(evaluate, "published_score", lambda row, dataset, split: 0.717)
    given = arguments(predicted, getam, miniature, tmp_path)
    run_here(MODULE, *given)
    assert [r["published"] for r in json.loads((tmp_path / "evaluation.json").read_text())["rows"]] == [
        None
    ] * 2
    monkeypatch.setattr(evaluate, "PUBLISHED_SQUARES", (64,))
    run_here(MODULE, *given)
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert [r["published"] for r in record["rows"]] == [None, 0.717]
    assert "the published test" in record["rows"][1]["what"] and record["released"] == row.name


def test_predictions_that_do_not_belong_are_refused(predicted, getam, miniature, tmp_path, capsys):
    given = arguments(predicted, getam, miniature, tmp_path / "out")
    swapped = (*given, "--pred-dir", predicted / "squares_crf")
    assert "squares_crf: its crf is True, not False" in error_line(
        capsys, "segmentation.getam.evaluate", *swapped
    )
    other = (*given, "--checkpoint", getam / "best.pth", "--split", "train")
    assert "its split is val, not train" in error_line(capsys, MODULE, *other)
    other = (*given, "--crf-dir", getam)
    assert "its command is segmentation.getam.train" in error_line(
        capsys, "segmentation.getam.evaluate", *other
    )
    assert not (tmp_path / "out").exists()


def test_without_masks_there_is_no_score(getam, miniature_without_masks, tmp_path, capsys):
    given = ("--data-path", miniature_without_masks, "--checkpoint", getam / "last.pth", "--squares", 64)
    for name, crf in (("squares", ()), ("squares_crf", ("--crf",))):
        run_here("segmentation.getam.predict", *given, *crf, "--workers", 0, "--output-dir", tmp_path / name)
    run_here(
        "segmentation.getam.evaluate", *arguments(tmp_path, getam, miniature_without_masks, tmp_path / "out")
    )
    assert "No score: not every picture of val has a mask." in capsys.readouterr().out
