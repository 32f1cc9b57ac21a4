"""The baseline by hue: labels of hand-made pixels, the threshold by brute force, its files, bad input."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from tests.commands import error_line, run_here
from wsss import shapes_baseline
from wsss.datasets import load_dataset
from wsss.io import read_image, read_mask
from wsss.shapes import CLASSES, HUE_BAND
from wsss.shapes_baseline import SATURATIONS, Config, best_saturation, colour_labels

EVERYTHING = np.ones(6, bool)
PIXELS = {  # of full saturation -> the label of their hue: 1 + place among the classes, 0 between the bands
    (255, 0, 0): 1, (255, 255, 0): 2, (0, 255, 0): 3, (0, 255, 255): 4, (0, 0, 255): 5, (255, 0, 255): 6,
    (255, 43, 0): 1, (255, 0, 43): 1,  # 10 degrees to both sides of 0
    (255, 85, 0): 0, (255, 0, 85): 0,  # 20 degrees: the band ends at 16.2
    (255, 190, 0): 2, (255, 170, 0): 0,  # 15.3 and 20 degrees before yellow
    (255, 128, 0): 0, (128, 255, 0): 0, (0, 255, 128): 0,  # half way between two classes
    (0, 128, 255): 0, (128, 0, 255): 0, (255, 0, 128): 0,
    (60, 0, 0): 1, (0, 0, 3): 5,  # dark
    (90, 90, 90): 0, (0, 0, 0): 0, (255, 255, 255): 0,
}  # fmt: skip


def labels_of(pixels, present=EVERYTHING, saturations=(0.5,)) -> np.ndarray:
    """(n, pixels) of a picture of one row."""
    found = colour_labels(np.array([pixels], np.uint8), np.asarray(present), saturations)
    assert found.dtype == np.uint8 and found.shape == (len(saturations), 1, len(pixels))
    return found[:, 0]


# ---------------------------------------------------------------------------------------------- labels


def test_labels_of_pixels():
    assert labels_of(list(PIXELS))[0].tolist() == list(PIXELS.values())


@pytest.mark.parametrize("hidden", range(6))
def test_absent_classes_never(hidden):
    present = np.arange(6) != hidden
    expected = [0 if value == hidden + 1 else value for value in PIXELS.values()]
    assert labels_of(list(PIXELS), present)[0].tolist() == expected
    noise = np.random.default_rng(hidden).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    found = np.unique(colour_labels(noise, present, [0.1]))
    assert found.tolist() == [0, *(k + 1 for k in np.flatnonzero(present))]
    assert not labels_of(list(PIXELS), np.zeros(6, bool)).any()


def test_saturation_decides_and_its_threshold_is_inclusive():
    pixels = [(200, 160, 160), (200, 120, 120), (200, 80, 80), (200, 40, 40)]  # 0.2, 0.4, 0.6, 0.8
    found = labels_of(pixels, saturations=[0.1, 0.3, 0.5, 0.7, 0.9])
    assert found.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]]
    image = np.array([pixels], np.float32) / 255
    for k, value in enumerate(cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[0, :, 1]):
        assert abs(value - (k + 1) / 5) < 1e-5
        found = labels_of(pixels, saturations=[value, np.nextafter(value, np.float32(1))])
        assert found[:, k].tolist() == [1, 0]


# ------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Five training and four validation pictures. Read only."""
    folder = tmp_path_factory.mktemp("shapes") / "data"
    run_here("wsss.shapes", "--output-dir", folder, "--train", 5, "--val", 4)
    return folder


def score(data, folder, *options) -> dict:
    run_here("wsss.shapes_baseline", "--data-path", data, "--output-dir", folder, "--workers", 0, *options)
    return json.loads((folder / "score.json").read_text())


def plain_labels(image: np.ndarray, least: float, present) -> np.ndarray:
    """By the definition of hue and saturation, in double precision."""
    high, low = image.max(-1).astype(float), image.min(-1).astype(float)
    red, green, blue = np.moveaxis(image.astype(float), 2, 0)
    span = np.where(high > low, high - low, 1)
    sixths = [(green - blue) / span % 6, (blue - red) / span + 2]
    hue = np.select([high == red, high == green], sixths, (red - green) / span + 4) / 6
    labels = np.zeros(hue.shape, int)
    for place, kind in enumerate(CLASSES.values()):
        turn = np.abs(hue - kind.hue)
        labels[(np.minimum(turn, 1 - turn) <= HUE_BAND) & bool(present[place])] = place + 1
    return np.where((high > low) & ((high - low) >= least * high - 1e-4), labels, 0)


def plain_miou(data: Path, split: str, least: float, *, image_labels: bool) -> float:
    spec = load_dataset("folder", data)
    found, truth = [], []
    for image_id in spec.image_ids(split):
        mask = read_mask(data / "masks" / f"{image_id}.png")
        present = np.isin(np.arange(1, 7), mask) if image_labels else EVERYTHING
        found.append(plain_labels(read_image(data / "images" / f"{image_id}.jpg"), least, present).ravel())
        truth.append(mask.ravel())
    return jaccard_score(np.concatenate(truth), np.concatenate(found), average="macro")


@pytest.mark.parametrize("image_labels", [False, True])
def test_threshold_and_score_against_brute_force(image_labels, data, tmp_path):
    options = ("--image-labels",) if image_labels else ()
    record = score(data, tmp_path / "out", *options)
    expected = [plain_miou(data, "train", least, image_labels=image_labels) for least in SATURATIONS]
    assert np.allclose(SATURATIONS, np.arange(1, 10) / 10)
    assert np.sort(expected)[-1] - np.sort(expected)[-2] > 1e-3  # no tie
    least = SATURATIONS[int(np.argmax(expected))]
    assert record["least_saturation"] == pytest.approx(least)
    best = plain_miou(data, "val", least, image_labels=image_labels)
    assert record["mean_iou"] == pytest.approx(best, abs=1e-3)


def test_files_and_fields(data, tmp_path):
    record = score(data, tmp_path / "out", "--split", "train", "--image-labels")
    about = {
        "split": "train", "images": 5, "pred_dir": str(tmp_path / "out"), "mask_dir": str(data / "masks"),
        "image_labels": True, "crf_preset": None,
    }  # fmt: skip
    assert record | about == record
    assert record["least_saturation"] in SATURATIONS
    assert [entry["name"] for entry in record["classes"]] == ["background", *CLASSES]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["command"], config["split"]) == ("wsss.shapes_baseline", "train")
    assert config["image_labels"] is True and config["crf"] is False
    spec = load_dataset("folder", data)
    for image_id in spec.image_ids("train"):
        labels = read_mask(tmp_path / "out" / f"{image_id}.png")
        image = read_image(spec.image_path(image_id))
        present = spec.labels(image_id).astype(bool)
        assert np.array_equal(labels, colour_labels(image, present, [record["least_saturation"]])[0])
        assert set(np.unique(labels)) <= {0, *(np.flatnonzero(present) + 1)}
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


def test_threshold_is_chosen_on_the_training_list(data, tmp_path):
    """Whatever list is scored, and for the same help."""
    config = Config(data_path=data, output_dir=tmp_path, split="val", image_labels=True, workers=2)
    least = best_saturation(load_dataset("folder", data), config)
    assert score(data, tmp_path / "a", "--image-labels", "--split", "val")["least_saturation"] == least


@pytest.mark.parametrize("image_labels", [False, True])
def test_crf_sees_the_classes_considered_and_its_labels_get_their_values_back(
    image_labels, data, tmp_path, monkeypatch
):
    """A stand-in for the CRF that turns the order of its labels round."""
    seen = []

    def turned(image, labels, *, num_labels, preset):
        assert labels.max() < num_labels and preset == "voc12_cam"
        seen.append((num_labels, labels.copy()))
        return (num_labels - 1 - labels).astype(np.uint8)

    monkeypatch.setattr(shapes_baseline, "check_crf_installed", lambda: None)
    monkeypatch.setattr(shapes_baseline, "crf_from_labels", turned)
    options = ("--image-labels",) if image_labels else ()
    record = score(data, tmp_path / "crf", "--crf", *options)
    plain = score(data, tmp_path / "plain", *options)
    assert record["crf_preset"] == "voc12_cam" and record["image_labels"] is image_labels
    assert record["least_saturation"] == plain["least_saturation"]  # chosen before CRF
    spec = load_dataset("folder", data)
    for image_id, (count, places) in zip(spec.image_ids("val"), seen, strict=True):
        classes = spec.label_indices(image_id) if image_labels else range(6)
        values = np.array([0, *(c + 1 for c in classes)])
        assert count == len(values)
        assert np.array_equal(values[places], read_mask(tmp_path / "plain" / f"{image_id}.png"))
        assert np.array_equal(values[::-1][places], read_mask(tmp_path / "crf" / f"{image_id}.png"))


def test_crf_itself_sharpens(data, tmp_path):
    pytest.importorskip("pydensecrf.densecrf")
    options = ("--image-labels", "--split", "val")
    assert (
        score(data, tmp_path / "crf", "--crf", *options)["pixel_accuracy"]
        > score(data, tmp_path / "plain", *options)["pixel_accuracy"]
    )


# --------------------------------------------------------------------------------------------- bad input


def refused(capsys, data, folder, *options) -> str:
    return error_line(capsys, "wsss.shapes_baseline", "--data-path", data, "--output-dir", folder, *options)


def test_other_data_sets_are_refused(miniature, data, tmp_path, capsys):
    line = refused(capsys, miniature, tmp_path / "out")
    assert str(miniature) in line and "not the embedded data set" in line and "wsss.shapes" in line
    turned = Path(shutil.copytree(data, tmp_path / "turned"))
    names = (data / "classes.txt").read_text().split()
    (turned / "classes.txt").write_text("\n".join(names[::-1]))
    assert "not the embedded data set" in refused(capsys, turned, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_masks_and_lists_are_named(data, tmp_path, capsys):
    cut = Path(shutil.copytree(data, tmp_path / "cut"))
    (cut / "masks" / "0006.png").unlink()
    line = refused(capsys, cut, tmp_path / "out", "--workers", 0)
    assert str(cut) in line and "masks of val are missing" in line and "again" in line
    assert "test" in refused(capsys, data, tmp_path / "out", "--split", "test")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_run_is_kept(data, tmp_path, capsys):
    score(data, tmp_path / "out")
    line = refused(capsys, data, tmp_path / "out", "--image-labels", "--workers", 0)
    assert "image_labels was False, now True" in line and "--overwrite" in line
    record = score(data, tmp_path / "out", "--image-labels", "--overwrite")
    assert record == score(data, tmp_path / "fresh", "--image-labels") | {"pred_dir": str(tmp_path / "out")}
