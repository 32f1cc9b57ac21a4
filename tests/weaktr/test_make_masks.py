"""Pseudo-masks: the files, their score, continuing, and bad input; the command on a small drawn folder."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from weaktr.make_masks import Config, main, pseudo_mask
from wsss.cam_files import read_cams, write_cams, write_compact_cams
from wsss.config import run_command
from wsss.crf import crf_from_labels
from wsss.errors import UserError
from wsss.metrics import ConfusionMatrix
from wsss.visualize import overlay

pytest.importorskip("pydensecrf")
T = 0.4


@pytest.fixture
def folder(tmp_path):
    """Five pictures, a coloured square on grey each, with noisy CAMs; the last is empty and has no labels."""
    rng = np.random.default_rng(2)
    for name in ("data/images", "data/masks"):
        (tmp_path / name).mkdir(parents=True)
    rows = ["image,labels"]
    for i in range(5):
        height, width = 40 + i, 50 - i
        inside = np.zeros((height, width), bool)
        if i < 4:
            inside[10:30, 12 + i : 34] = True
        colour = np.where(inside[..., None], (220, 40 * i, 60), (120, 125, 118))
        image = (colour + rng.normal(0, 4, (height, width, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "data" / "images" / f"p{i}.png")
        Image.fromarray(np.where(inside, i % 3 + 1, 0).astype(np.uint8)).save(
            tmp_path / "data" / "masks" / f"p{i}.png"
        )
        rows.append(f"p{i},{('a', 'b', 'c')[i % 3] if i < 4 else ''}{';c' if i == 1 else ''}")
        if i < 4:
            cam = (0.75 * inside + rng.random(inside.shape) * 0.3)[None]
            if i == 1:
                cam = np.concatenate([cam, rng.random((1, height, width)) * 0.5])
            ids = [i % 3, 2][: len(cam)]
            if i == 3:
                write_compact_cams(tmp_path / "cams" / "p3.npz", [cam[:, ::4, ::4]], ids, inside.shape)
            else:
                write_cams(tmp_path / "cams" / f"p{i}.npz", cam, ids)
    (tmp_path / "data" / "classes.txt").write_text("a\nb\nc\n")
    (tmp_path / "data" / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "data" / "train.txt").write_text("\n".join(f"p{i}" for i in range(5)))
    return tmp_path


def config(folder, **changes):
    options = {"dataset": "folder", "data_path": folder / "data", "cam_dir": folder / "cams",
               "output_dir": folder / "out", "threshold": T, "workers": 0}  # fmt: skip
    return Config(**options | changes)


def load(path):
    return np.array(Image.open(path))


def masks_in(folder, out="out"):
    return {path.name: load(path) for path in sorted((folder / out).glob("*.png"))}


def expected(folder, i, crf):
    """Plain: the largest map where it exceeds T, then the CRF over background and the picture's classes."""
    image = load(folder / "data" / "images" / f"p{i}.png")
    if i == 4:
        return np.zeros(image.shape[:2], np.uint8)
    cams, ids = read_cams(folder / "cams" / f"p{i}.npz")
    stacked = np.concatenate([np.full((1, *cams.shape[1:]), T), cams.astype(np.float64)])
    labels = stacked.argmax(0)
    if crf:
        labels = crf_from_labels(image, labels, num_labels=len(stacked), preset="voc12_cam")
    return np.array([0, *(ids + 1)])[labels]


def confusion(folder, crf):
    matrix = ConfusionMatrix(4)
    for i in range(5):
        matrix.update(expected(folder, i, crf), load(folder / "data" / "masks" / f"p{i}.png"))
    return matrix.scores()


@pytest.mark.parametrize("crf", [True, False])
def test_masks_and_score(folder, crf):
    main(config(folder, crf=crf))
    for i in range(5):
        mask = Image.open(folder / "out" / f"p{i}.png")
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.array(mask), expected(folder, i, crf))
    record = json.loads((folder / "out" / "score.json").read_text())
    assert record["mean_iou"] == confusion(folder, crf).mean_iou
    assert record["threshold"] == T
    assert record["split"] == "train"
    if crf:
        assert record["before_crf"]["mean_iou"] == confusion(folder, False).mean_iou
        assert record["crf_preset"] == "voc12_cam"
        assert record["mean_iou"] > record["before_crf"]["mean_iou"]
    else:
        assert "before_crf" not in record
        assert record["crf_preset"] is None
    assert (folder / "out" / "score.md").is_file()


def test_processes_give_equal_bytes(folder):
    main(config(folder))
    main(config(folder, workers=2, output_dir=folder / "two"))
    names = sorted(path.name for path in (folder / "out").glob("*.png"))
    assert len(names) == 5
    for name in names:
        assert (folder / "out" / name).read_bytes() == (folder / "two" / name).read_bytes()


def test_crf_preset_is_taken(folder):
    main(config(folder, crf_preset="coco14_cam"))
    record = json.loads((folder / "out" / "score.json").read_text())
    assert record["crf_preset"] == "coco14_cam"
    labels = load(folder / "out" / "p0.png")
    image = load(folder / "data" / "images" / "p0.png")
    before = expected(folder, 0, False)
    np.testing.assert_array_equal(labels, crf_from_labels(image, before, num_labels=2, preset="coco14_cam"))


def test_continues_and_scores_everything(folder, caplog):
    main(config(folder))
    whole = (folder / "out" / "score.json").read_bytes()
    first = masks_in(folder)
    for name in ("p1.png", "p3.png", "score.json"):
        (folder / "out" / name).unlink()
    (folder / "out" / ".p1.png.tmp").write_bytes(b"left by a killed process")
    kept = (folder / "out" / "p0.png").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        main(config(folder))
    assert "3 of 5 masks are there already" in caplog.text
    assert (folder / "out" / "p0.png").stat().st_mtime_ns == kept
    assert (folder / "out" / "score.json").read_bytes() == whole
    assert not (folder / "out" / ".p1.png.tmp").exists()
    again = masks_in(folder)
    assert list(again) == list(first)
    for name, mask in first.items():
        np.testing.assert_array_equal(again[name], mask)


def test_another_threshold_or_other_cams_need_another_folder(folder):
    (folder / "cams" / "config.json").write_text("{}")
    main(config(folder, crf=False))
    with pytest.raises(UserError, match=r"threshold was 0\.4, now 0\.5"):
        main(config(folder, crf=False, threshold=0.5))
    (folder / "cams" / "config.json").write_text('{"scales": [1.0]}')
    with pytest.raises(UserError, match="cams_config_sha256"):
        main(config(folder, crf=False))
    main(config(folder, crf=False, threshold=0.95, overwrite=True))
    cams, ids = read_cams(folder / "cams" / "p0.npz")
    above = cams[0].astype(np.float64) > 0.95
    np.testing.assert_array_equal(masks_in(folder)["p0.png"], np.where(above, ids[0] + 1, 0))
    assert json.loads((folder / "out" / "score.json").read_text())["threshold"] == 0.95


def test_without_masks(folder, caplog):
    for path in (folder / "data" / "masks").iterdir():
        path.unlink()
    with caplog.at_level(logging.INFO):
        main(config(folder))
    assert len(masks_in(folder)) == 5
    assert not (folder / "out" / "score.json").exists()
    assert "no score" in caplog.text
    assert "next:" not in caplog.text  # what follows "next:" can be pasted
    assert caplog.messages[-1].startswith("done: ")


@pytest.mark.parametrize("workers", [0, 2])
def test_panels(folder, workers, caplog):
    """Of p0 and p2 of five, also where the masks are there already; the masks are no others for it."""
    main(config(folder))
    before = {path.name: path.read_bytes() for path in (folder / "out").glob("*.png")}
    assert not (folder / "out" / "panels").exists()
    with caplog.at_level(logging.INFO):
        main(config(folder, panels=2, workers=workers))
    assert "wrote panels of 2 pictures" in caplog.text
    main(config(folder, panels=2, workers=workers, output_dir=folder / "new"))
    for out in (folder / "out", folder / "new"):
        assert {path.name: path.read_bytes() for path in out.glob("*.png")} == before
        names = ("picture", "pseudo_mask", "truth")
        found = sorted(str(path.relative_to(out / "panels")) for path in out.glob("panels/*/*"))
        assert found == [f"{i}/{name}.png" for i in ("p0", "p2") for name in names]
        for i in (0, 2):
            image, truth = (load(folder / "data" / kind / f"p{i}.png") for kind in ("images", "masks"))
            shown = [load(out / "panels" / f"p{i}" / f"{name}.png") for name in names]
            np.testing.assert_array_equal(shown[0], image)
            np.testing.assert_array_equal(shown[1], overlay(image, expected(folder, i, True)))
            np.testing.assert_array_equal(shown[2], overlay(image, truth))
    main(config(folder, threshold=0.6, overwrite=True))
    assert not (folder / "out" / "panels").exists()


def test_panels_show_the_truth_that_there_is(folder):
    """Of the data set, also where not every picture has a mask; of --mask-dir, where it is given."""
    (folder / "data" / "masks" / "p0.png").unlink()
    main(config(folder, panels=2, crf=False))
    found = {str(path.relative_to(folder / "out/panels")) for path in folder.glob("out/panels/*/truth.png")}
    assert found == {"p2/truth.png"}
    image = load(folder / "data" / "images" / "p0.png")
    (folder / "given").mkdir()
    for i in range(5):
        size = load(folder / "data" / "images" / f"p{i}.png").shape[:2]
        Image.fromarray(np.full(size, 3, np.uint8)).save(folder / "given" / f"p{i}.png")
    given = {"mask_dir": folder / "given", "output_dir": folder / "other"}
    main(config(folder, panels=1, crf=False, **given))
    shown = load(folder / "other" / "panels" / "p0" / "truth.png")
    np.testing.assert_array_equal(shown, overlay(image, np.full(image.shape[:2], 3)))


def test_threshold_file(folder):
    path = folder / "threshold.json"
    path.write_text('{"threshold": 0.4, "selected_by": "test"}')
    main(config(folder, threshold=None, threshold_file=path, crf=False))
    main(config(folder, crf=False))  # the same value given as a number continues the same run
    np.testing.assert_array_equal(masks_in(folder)["p0.png"], expected(folder, 0, False))


@pytest.mark.parametrize(
    ("threshold", "content", "message"),
    [
        (None, None, "--threshold: give it, or --threshold-file"),
        (0.4, '{"threshold": 0.4}', "not both"),
        (1.5, None, r"--threshold: the threshold must be a number in 0\.\.1, got 1\.5"),
        (None, '{"threshold": null}', r"threshold\.json: the threshold must be a number"),
        (None, "[1]", r"threshold\.json: the threshold must be a number"),
        (None, "{", r"threshold\.json"),
    ],
)
def test_bad_threshold(folder, threshold, content, message):
    path = None
    if content is not None:
        path = folder / "threshold.json"
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        main(config(folder, threshold=threshold, threshold_file=path))
    assert not (folder / "out").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_cams_of_another_size_stop_with_one_line(folder, workers, capsys):
    write_cams(folder / "cams" / "p2.npz", np.zeros((1, 9, 9)), [0])
    arguments = ["--data-path", folder / "data", "--cam-dir", folder / "cams", "--output-dir", folder / "out"]
    arguments += ["--threshold", "0.4", "--no-crf", "--workers", workers]
    with pytest.raises(SystemExit) as stopped:
        run_command(main, Config, [str(a) for a in arguments], prog="weaktr.make_masks")
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "p2.npz: CAMs of 9x9 pixels" in lines[0]
    assert "p2.png" not in masks_in(folder)


def test_missing_or_foreign_cams(folder):
    write_cams(folder / "cams" / "p0.npz", np.zeros((1, 40, 50)), [3])
    with pytest.raises(UserError, match=r"p0\.npz: holds class 3, the data set has 3 classes"):
        main(config(folder, crf=False))
    (folder / "cams" / "p2.npz").unlink()
    with pytest.raises(UserError, match=r"p2\.npz: no such CAM file"):
        main(config(folder, crf=False, output_dir=folder / "other"))
    assert not (folder / "other").exists()


def test_one_label_needs_no_crf():
    image = np.zeros((4, 4, 3), np.uint8)
    before, after = pseudo_mask(image, np.zeros((0, 4, 4), np.float16), [], T, preset="voc12_cam")
    assert (before == 0).all()
    assert (after == 0).all()
    assert before.dtype == after.dtype == np.uint8
