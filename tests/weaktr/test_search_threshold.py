"""One pass over CAM files against thresholding at each value in turn; the published search; the command."""

import json

import numpy as np
import pytest
from PIL import Image

from weaktr.search_threshold import Config, main, threshold_curve
from weaktr.thresholds import (
    SWEEP,
    ThresholdAccumulator,
    ThresholdCurve,
    otsu_threshold,
    threshold_values,
)
from wsss.cam_files import maps_from_grids, read_cams, write_cams, write_compact_cams
from wsss.config import run_command
from wsss.errors import UserError
from wsss.metrics import ConfusionMatrix, scores_from_totals

NUM_FG = 4
THRESHOLDS = threshold_values(0.0, 0.99, 0.01)


def random_picture(rng):
    """CAMs with many ties (multiples of 1/16 and of 0.01), their classes, and a mask with ignored pixels."""
    n, height, width = rng.integers(0, 4), *rng.integers(5, 30, 2)
    steps = rng.choice([16, 100])
    cams = (rng.integers(0, steps + 1, (n, height, width)) / steps).astype(np.float16)
    class_ids = rng.permutation(NUM_FG)[:n]
    mask = rng.integers(0, NUM_FG, (height, width)).astype(np.uint8)  # the last class is never true
    mask[rng.random(mask.shape) < 0.1] = 255
    return cams, class_ids, mask


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(7)
    return [random_picture(rng) for _ in range(12)]


def confusion_at(threshold, pictures):
    """The naive way, pixel by pixel."""
    matrix = ConfusionMatrix(NUM_FG + 1)
    for cams, class_ids, mask in pictures:
        pred = np.zeros(mask.shape, np.int64)
        for y, x in np.ndindex(mask.shape):
            best, value = 0, threshold
            for cam, class_id in zip(cams, class_ids, strict=True):
                if float(cam[y, x]) > value:
                    best, value = class_id + 1, float(cam[y, x])
            pred[y, x] = best
        matrix.update(pred, mask)
    return matrix


@pytest.fixture(scope="module")
def accumulator(pictures):
    result = ThresholdAccumulator(NUM_FG, THRESHOLDS)
    for picture in pictures:
        result.update(*picture)
    return result


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.43, 0.5, 0.57, 0.99])
def test_curve_equals_thresholding_again(pictures, accumulator, threshold):
    expected = confusion_at(threshold, pictures).scores()
    curve = accumulator.curve()
    i = curve.index(threshold)
    for name in ("iou", "false_positive", "false_negative", "precision", "recall"):
        np.testing.assert_array_equal(getattr(curve.scores, name)[i], getattr(expected, name))
        assert getattr(curve.scores, f"mean_{name}")[i] == getattr(expected, f"mean_{name}")
    assert curve.scores.pixel_accuracy[i] == expected.pixel_accuracy
    assert curve.mean_iou_at(threshold) == expected.mean_iou


def test_best_is_the_largest_of_the_curve_and_the_lowest_of_equals(accumulator):
    curve = accumulator.curve()
    assert curve.best_mean_iou == curve.mean_iou.max()
    assert curve.best_threshold == curve.thresholds[list(curve.mean_iou).index(curve.mean_iou.max())]


def test_merged_halves_equal_the_whole(pictures, accumulator):
    halves = [ThresholdAccumulator(NUM_FG, THRESHOLDS) for _ in range(2)]
    for i, picture in enumerate(pictures):
        halves[i % 2].update(*picture)
    np.testing.assert_array_equal(halves[0].merge(halves[1]).counts, accumulator.counts)
    assert halves[0].counts.sum() == sum((mask != 255).sum() for _, _, mask in pictures)


def test_float32_maps_count_as_their_float16_files(pictures):
    rng = np.random.default_rng(0)
    first, second = (ThresholdAccumulator(NUM_FG, THRESHOLDS) for _ in range(2))
    cams = rng.random((2, 30, 40)).astype(np.float32)
    mask = rng.integers(0, 3, (30, 40))
    first.update(cams, [0, 1], mask)
    second.update(cams.astype(np.float16), [0, 1], mask)
    np.testing.assert_array_equal(first.counts, second.counts)


def test_negative_values_and_equal_maps_from_elsewhere():
    accumulator = ThresholdAccumulator(2, [0.0, 0.5])
    cams = np.array([[[-1.0, -0.0, 0.6]], [[-2.0, 0.0, 0.6]]], np.float16)
    accumulator.update(cams, [1, 0], np.array([[0, 0, 2]]))
    scores = accumulator.curve().scores
    np.testing.assert_array_equal(scores.iou, [[1, np.nan, 1], [1, np.nan, 1]])


def curve_of(values):
    """A curve over the sweep's thresholds with the given mIoU."""
    values = np.array([*values, *[0.0] * (len(SWEEP) - len(values))])
    scores = scores_from_totals(*np.ones((3, len(SWEEP), 1)))
    object.__setattr__(scores, "mean_iou", values)
    return ThresholdCurve(np.array(SWEEP), scores)


@pytest.mark.parametrize(
    ("values", "published", "best"),
    [
        ([0.3, 0.4, 0.5, 0.45, 0.9], 0.42, 0.44),  # stops at the first that is lower
        ([0.3, 0.4, 0.4, 0.9], 0.41, 0.43),  # an equal one stops it too
        ([0.3, 0.2, 0.9], 0.40, 0.42),
        ([i / 100 for i in range(20)], 0.59, 0.59),  # to the end
        ([0.0], 0.40, 0.40),
    ],
)
def test_published_search(values, published, best):
    curve = curve_of(values)
    assert curve.published_threshold == published
    assert curve.best_threshold == best


def test_published_search_needs_its_thresholds():
    accumulator = ThresholdAccumulator(1, [0.1, 0.4, 0.5])
    accumulator.update(np.ones((1, 2, 2)), [0], np.ones((2, 2), np.uint8))
    assert accumulator.curve().published_threshold is None
    np.testing.assert_array_equal(SWEEP, THRESHOLDS[40:60])


def test_accumulator_refuses_what_does_not_fit():
    accumulator = ThresholdAccumulator(2, THRESHOLDS)
    with pytest.raises(ValueError, match=r"CAMs \(1, 2, 2\)|shape \(1, 2, 2\)"):
        accumulator.update(np.zeros((1, 2, 2)), [0], np.zeros((2, 3)))
    with pytest.raises(ValueError, match="not all below 2"):
        accumulator.update(np.zeros((1, 2, 2)), [2], np.zeros((2, 2)))
    with pytest.raises(ValueError, match="holds 3"):
        accumulator.update(np.zeros((1, 2, 2)), [0], np.full((2, 2), 3))
    with pytest.raises(ValueError, match="no pixel"):
        accumulator.curve()
    for wrong in ([], [0.5, float("nan")], [[0.5]]):
        with pytest.raises(ValueError, match="list of finite numbers"):
            ThresholdAccumulator(2, wrong)


def test_thresholds_in_any_order_give_the_same_scores(pictures, accumulator):
    order = np.random.default_rng(1).permutation(len(THRESHOLDS))
    order = np.append(order, order[:3])  # and some twice
    mixed = ThresholdAccumulator(NUM_FG, [THRESHOLDS[i] for i in order])
    for picture in pictures:
        mixed.update(*picture)
    found, expected = mixed.curve(), accumulator.curve()
    np.testing.assert_array_equal(found.thresholds, np.array(THRESHOLDS)[order])
    np.testing.assert_array_equal(found.scores.iou, expected.scores.iou[order])
    np.testing.assert_array_equal(found.mean_iou, expected.mean_iou[order])
    assert (found.best_threshold, found.best_mean_iou) == (expected.best_threshold, expected.best_mean_iou)
    assert found.published_threshold == expected.published_threshold


def test_of_equal_maxima_in_any_order_the_lowest_threshold_is_best():
    mixed = ThresholdAccumulator(1, [0.3, 0.1, 0.2, 0.9])
    mixed.update(np.array([[[0.5, 0.0]]]), [0], np.array([[1, 0]]))
    curve = mixed.curve()
    assert curve.mean_iou.tolist() == [1, 1, 1, 0.25]
    assert curve.best_threshold == 0.1


# ----------------------------------------------------------------------------------- files and command


@pytest.fixture
def folder(tmp_path):
    """Six pictures of a data set in the folder layout with masks, and CAM files of both forms."""
    root, cams = tmp_path / "data", tmp_path / "cams"
    rng = np.random.default_rng(5)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    names = ("cat", "dog", "eel")
    rows, ids = ["image,labels"], [f"p {i}" for i in range(6)]
    for i, image_id in enumerate(ids):
        height, width = 20 + i, 31 - i
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            root / "images" / f"{image_id}.png"
        )
        mask = rng.integers(0, 4, (height, width)).astype(np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{image_id}.png")
        labels = [] if i == 4 else [i % 3, 2] if i % 3 != 2 else [2]
        rows.append(f"{image_id},{';'.join(names[c] for c in labels)}")
        if labels:
            grids = [rng.random((len(labels), 3, 4)).astype(np.float32)]
            path = cams / f"{image_id}.npz"
            if i % 2:
                write_compact_cams(path, grids, labels, mask.shape)
            else:
                write_cams(path, maps_from_grids(grids, mask.shape), labels)
    (root / "classes.txt").write_text("\n".join(names))
    (root / "labels.csv").write_text("\n".join(rows))
    (root / "train.txt").write_text("\n".join(ids))
    return tmp_path


def config(folder, **changes):
    options = {"dataset": "folder", "data_path": folder / "data", "cam_dir": folder / "cams",
               "output_dir": folder / "out", "workers": 0}  # fmt: skip
    return Config(**options | changes)


def mask_of(folder, i):
    return np.array(Image.open(folder / "data" / "masks" / f"p {i}.png"))


def read(folder):
    return json.loads((folder / "out" / "threshold.json").read_text())


def test_command_writes_the_whole_curve(folder):
    main(config(folder))
    record = read(folder)
    assert record["threshold"] == record["best_threshold"]
    assert record["selected_by"] == "best mIoU on the masks of train"
    assert (record["images"], record["images_without_labels"]) == (6, 1)
    assert record["curve"]["threshold"] == [i / 100 for i in range(100)]
    assert len(record["curve"]["iou"]) == 100
    assert len(record["curve"]["iou"][0]) == 4
    accumulator = ThresholdAccumulator(3, THRESHOLDS)
    for i in (0, 1, 2, 3, 5):
        accumulator.update(*read_cams(folder / "cams" / f"p {i}.npz"), mask_of(folder, i))
    labelled = threshold_curve(
        str(folder / "cams"),
        folder / "data" / "masks",
        [f"p {i}" for i in (0, 1, 2, 3, 5)],
        num_classes=3,
        thresholds=THRESHOLDS,
    )
    np.testing.assert_array_equal(labelled.mean_iou, accumulator.curve().mean_iou)
    mask = mask_of(folder, 4)
    accumulator.update(np.zeros((0, *mask.shape)), [], mask)  # no labels: background, and it counts
    assert record["curve"]["mean_iou"] == accumulator.curve().mean_iou.tolist()
    assert record["curve"]["mean_iou"] != labelled.mean_iou.tolist()
    assert Image.open(folder / "out" / "threshold.png").format == "PNG"


def test_processes_and_repetition_give_the_same_file(folder):
    main(config(folder))
    first = (folder / "out" / "threshold.json").read_bytes()
    main(config(folder, workers=2))
    assert (folder / "out" / "threshold.json").read_bytes() == first


def test_select(folder):
    main(config(folder, select="sweep"))
    record = read(folder)
    assert record["threshold"] == record["published_search_threshold"]
    main(config(folder, select="published", overwrite=True))
    assert read(folder)["threshold"] == 0.43
    assert read(folder)["selected_by"] == "published value, masks not used"
    assert read(folder)["best_mean_iou"] == record["best_mean_iou"]


def test_without_masks_the_threshold_comes_from_the_cams(folder):
    (folder / "data" / "masks" / "p 2.png").unlink()
    with pytest.raises(UserError, match="--select best needs"):
        main(config(folder, select="best"))
    assert not (folder / "out").exists()
    main(config(folder))
    found = read(folder)
    assert found["selected_by"] == "Otsu's rule on the CAMs, masks not used"
    values = [read_cams(p).cams.max(0) for p in sorted((folder / "cams").glob("*.npz"))]
    grey = [np.floor(v.astype(np.float64) * 100).clip(0, 99) for v in values]
    weight = np.concatenate([np.full(v.size, 1 / v.size) for v in values])
    flat = np.concatenate([g.ravel() for g in grey])

    def between(t):
        low, high = flat < t, flat >= t
        share = weight[low].sum() / weight.sum()
        means = (np.average(flat[part], weights=weight[part]) for part in (low, high))
        return share * (1 - share) * (next(means) - next(means)) ** 2

    best = max(range(int(flat.min()) + 1, int(flat.max()) + 1), key=between)
    assert found["threshold"] == pytest.approx(best / 100)
    main(config(folder, select="published", overwrite=True))
    assert read(folder) == {"threshold": 0.43, "selected_by": "published value, masks not used"}
    assert not (folder / "out" / "threshold.png").exists()


def test_otsu_parts_two_heaps():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.2, 0.03, 7000), rng.normal(0.7, 0.03, 3000)]).clip(0, 1)
    assert 0.28 < otsu_threshold(np.histogram(values, 100, (0, 1))[0]) < 0.62


def test_otsu_without_any_class_falls_back_to_the_published_value(folder):
    with pytest.raises(ValueError, match="empty"):
        otsu_threshold(np.zeros(100))
    labels = folder / "data" / "labels.csv"
    labels.write_text("image,labels\n" + "".join(f"p {i},\n" for i in range(6)))
    for path in (folder / "cams").iterdir():
        path.unlink()
    fallback = {"threshold": 0.43, "selected_by": "published value, no picture has a class"}
    main(config(folder, select="otsu"))
    assert {k: read(folder)[k] for k in fallback} == fallback
    (folder / "data" / "masks" / "p 2.png").unlink()
    for i in range(6):  # files without a map
        write_cams(folder / "cams" / f"p {i}.npz", np.zeros((0, 20 + i, 31 - i)), [])
    main(config(folder, overwrite=True))
    assert read(folder) == fallback


@pytest.mark.parametrize(
    ("content", "turned"),
    [('{"exif": true}', True), ('{"exif": false}', False), ("{}", False), (None, False)],
)
def test_next_line_makes_masks_of_pictures_turned_as_the_cams(folder, caplog, content, turned):
    if content:
        (folder / "cams" / "config.json").write_text(content)
    with caplog.at_level("INFO"):
        main(config(folder))
    (line,) = [m for m in caplog.messages if m.startswith("next: ")]
    assert line.startswith("next: python -m weaktr.make_masks ")
    assert (" --exif " in line) == turned


def test_missing_files_are_named(folder):
    (folder / "cams" / "p 3.npz").unlink()
    with pytest.raises(UserError, match=r"p 3\.npz: no such CAM file; .*generate_cam"):
        main(config(folder))
    assert not (folder / "out").exists()
    with pytest.raises(UserError, match="no such folder of CAMs"):
        main(config(folder, cam_dir=folder / "nowhere"))


@pytest.mark.parametrize("workers", [0, 2])
def test_mask_of_another_size_is_named(folder, workers):
    path = folder / "data" / "masks" / "p 1.png"
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(path)
    with pytest.raises(UserError, match=r"p 1\.png: does not fit .*p 1\.npz"):
        main(config(folder, workers=workers))
    assert not (folder / "out" / "threshold.json").exists()


@pytest.mark.parametrize("thresholds", [(0.1, 0.2), (0.5, 0.4, 0.01), (0.0, 1.5, 0.1), (0.0, 0.9, 0.0)])
def test_bad_thresholds(folder, thresholds):
    with pytest.raises(UserError, match="--thresholds"):
        main(config(folder, thresholds=thresholds))


def test_command_line(folder, capsys):
    arguments = ["--data-path", folder / "data", "--cam-dir", folder / "cams", "--output-dir", folder / "out"]
    arguments += ["--thresholds", "0.4", "0.59", "0.01", "--workers", "0"]
    run_command(main, Config, [str(a) for a in arguments], prog="weaktr.search_threshold")
    out = capsys.readouterr().out
    assert "python -m weaktr.make_masks --dataset folder" in out
    assert f"--threshold-file {folder / 'out' / 'threshold.json'}" in out
    assert len(read(folder)["curve"]["threshold"]) == 20
