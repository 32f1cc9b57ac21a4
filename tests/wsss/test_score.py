"""The scoring command against a plain computation, its files, and bad predictions."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import jaccard_score

from wsss.config import run_command
from wsss.errors import UserError
from wsss.metrics import ConfusionMatrix
from wsss.score import Config, main, score_masks, score_notes, score_table

NAMES = ("cat", "dog", "eel")


@pytest.fixture
def folder(tmp_path):
    """Three pictures with masks in the folder layout, and predictions; "eel" occurs nowhere."""
    rng = np.random.default_rng(11)
    for name in ("data/images", "data/masks", "pred"):
        (tmp_path / name).mkdir(parents=True)
    for i in range(3):
        shape = (17 + i, 23)
        Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(tmp_path / "data" / "images" / f"é {i}.jpg")
        mask = rng.integers(0, 3, shape).astype(np.uint8)
        pred = np.where(rng.random(shape) < 0.7, mask, 0).astype(np.uint8)
        mask[:2] = 255
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"é {i}.png")
        Image.fromarray(pred).save(tmp_path / "pred" / f"é {i}.png")
    (tmp_path / "data" / "classes.txt").write_text("\n".join(NAMES))
    (tmp_path / "data" / "val.txt").write_text("é 0\né 1\né 2\n", encoding="utf8")
    return tmp_path


def config(folder, **changes):
    options = {"dataset": "folder", "data_path": folder / "data", "pred_dir": folder / "pred",
               "output_dir": folder / "out", "workers": 0}  # fmt: skip
    return Config(**options | changes)


def pixels(folder):
    values = [
        [np.array(Image.open(folder / where / f"é {i}.png")).ravel() for i in range(3)]
        for where in ("data/masks", "pred")
    ]
    mask, pred = (np.concatenate(v) for v in values)
    return mask[mask != 255], pred[mask != 255]


@pytest.mark.parametrize("workers", [0, 2])
def test_command_writes_json_and_markdown(folder, workers):
    main(config(folder, workers=workers))
    expected = jaccard_score(*pixels(folder), average=None)
    record = json.loads((folder / "out" / "score.json").read_text())
    assert [c["name"] for c in record["classes"]] == ["background", *NAMES]
    np.testing.assert_allclose([c["iou"] for c in record["classes"][:3]], expected)
    assert record["classes"][3]["iou"] is None
    assert record["mean_iou"] == pytest.approx(expected.mean())
    assert record["pixel_accuracy"] == pytest.approx(np.mean(np.equal(*pixels(folder))))
    assert record["split"] == "val"
    assert record["images"] == 3
    assert record["mask_dir"] == str(folder / "data" / "masks")
    text = (folder / "out" / "score.md").read_text()
    assert f"| mean           | {100 * expected.mean():5.2f} |" in text
    assert "- split: val" in text
    assert "eel" not in text


def test_other_mask_folder_and_command_line(folder, capsys):
    (folder / "data" / "masks").rename(folder / "other")
    with pytest.raises(UserError, match="not every picture of val has a mask"):
        main(config(folder))
    arguments = [
        "--data-path",
        folder / "data",
        "--pred-dir",
        folder / "pred",
        "--output-dir",
        folder / "out",
    ]
    arguments += ["--split", "val", "--mask-dir", folder / "other", "--workers", "0"]
    run_command(main, Config, [str(a) for a in arguments], prog="wsss.score")
    out = capsys.readouterr().out
    assert f"mIoU  {100 * jaccard_score(*pixels_of_other(folder), average='macro'):.2f}%" in out
    assert f"val: 3 pictures, masks of {folder / 'other'}" in out


def pixels_of_other(folder):
    (folder / "data" / "masks").symlink_to(folder / "other")
    return pixels(folder)


def break_prediction(folder, how):
    path = folder / "pred" / "é 1.png"
    image = np.array(Image.open(path))
    if how == "missing":
        path.unlink()
    elif how == "size":
        Image.fromarray(image[:-1]).save(path)
    elif how == "value":
        image[5, 5] = 4
        Image.fromarray(image).save(path)
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    elif how == "colour":
        Image.fromarray(np.zeros((18, 23, 3), np.uint8)).save(path)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "no such prediction"),
        ("size", "is 23x17, its mask .* is 23x18"),
        ("value", "holds the value 4, the classes with background end at 3"),
        ("truncated", "damaged or truncated"),
        ("colour", "RGB"),
    ],
)
def test_bad_predictions_are_named(folder, how, message, workers):
    break_prediction(folder, how)
    with pytest.raises(UserError, match=r"é 1\.png.*" + message):
        main(config(folder, workers=workers))
    assert not (folder / "out" / "score.json").exists()


def test_bad_truth_is_named(folder):
    path = folder / "data" / "masks" / "é 2.png"
    Image.fromarray(np.full((19, 23), 9, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"masks/é 2\.png: holds the value 9"):
        main(config(folder))


def test_unlisted_predictions_are_not_looked_at(folder):
    (folder / "pred" / "broken.png").write_bytes(b"")
    paths = {f"é {i}": folder / "data" / "masks" / f"é {i}.png" for i in range(2)}
    assert score_masks(folder / "pred", paths, num_classes=4).counts.sum() == 15 * 23 + 16 * 23


def test_predicted_unused_coco_ids_are_noted():
    names = ["person", "unused_12", "dog"]
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([0, 1]), np.array([0, 1]))
    assert score_notes(matrix, names) == []
    matrix.update(np.array([2]), np.array([3]))
    assert "unused_12" in score_notes(matrix, names)[0]


def test_table():
    matrix = ConfusionMatrix(4)
    matrix.update(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2]))
    assert score_table(matrix.scores(), NAMES).split("\n") == [
        "| class          |   IoU |    FP |     FN | precision | recall |",
        "|----------------|------:|------:|-------:|----------:|-------:|",
        "| background     | 50.00 | 50.00 |   0.00 |     50.00 | 100.00 |",
        "| cat            | 33.33 | 33.33 |  33.33 |     50.00 |  50.00 |",
        "| dog            |  0.00 |  0.00 | 100.00 |         - |   0.00 |",
        "| mean           | 27.78 | 27.78 |  44.44 |     50.00 |  50.00 |",
        "| pixel accuracy | 50.00 |       |        |           |        |",
    ]
