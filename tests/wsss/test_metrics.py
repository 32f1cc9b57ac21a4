"""Scores against plain loops, sklearn and torchmetrics; merging and summing over processes."""

import math

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from sklearn.metrics import average_precision_score, confusion_matrix, jaccard_score

from wsss.metrics import ConfusionMatrix, class_mean_ap, sample_mean_ap


def random_labels(seed=0, classes=5, shape=(3, 20, 30)):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, classes, shape).astype(np.uint8)
    pred = np.where(rng.random(shape) < 0.6, target, rng.integers(0, classes, shape)).astype(np.uint8)
    target[rng.random(shape) < 0.1] = 255
    return pred, target


def test_scores_by_hand():
    matrix = ConfusionMatrix(4)
    #                       ignored |
    target = np.array([0, 0, 0, 1, 255, 1, 0])
    pred = np.array([0, 0, 1, 1, 3, 0, 2])
    matrix.update(pred, target)
    scores = matrix.scores()
    np.testing.assert_allclose(scores.iou, [2 / 5, 1 / 3, 0, np.nan])
    np.testing.assert_allclose(scores.false_positive, [1 / 5, 1 / 3, 1, np.nan])
    np.testing.assert_allclose(scores.false_negative, [2 / 5, 1 / 3, 0, np.nan])
    np.testing.assert_allclose(scores.precision, [2 / 3, 1 / 2, 0, np.nan])
    np.testing.assert_allclose(scores.recall, [2 / 4, 1 / 2, np.nan, np.nan])
    assert scores.mean_iou == pytest.approx((2 / 5 + 1 / 3) / 3)  # class 2 is predicted, so it counts
    assert scores.mean_precision == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert scores.mean_recall == pytest.approx(1 / 2)
    assert scores.pixel_accuracy == pytest.approx(3 / 6)


def test_counts_and_scores_equal_sklearn_and_torchmetrics():
    # here, not above: it imports torchvision, which wsss.compat must precede
    from torchmetrics.classification import MulticlassJaccardIndex

    pred, target = random_labels()
    matrix = ConfusionMatrix(5)
    matrix.update(pred, target)
    known = target != 255
    np.testing.assert_array_equal(
        matrix.counts, confusion_matrix(target[known], pred[known], labels=range(5))
    )
    np.testing.assert_allclose(matrix.scores().iou, jaccard_score(target[known], pred[known], average=None))
    theirs = MulticlassJaccardIndex(5, ignore_index=255)(
        torch.from_numpy(pred).long(), torch.from_numpy(target).long()
    )
    assert matrix.scores().mean_iou == pytest.approx(float(theirs), abs=1e-6)


def test_absent_class_is_nan_and_outside_the_mean():
    pred, target = random_labels(classes=5)
    small, large = ConfusionMatrix(5), ConfusionMatrix(9)
    small.update(pred, target)
    large.update(pred, target)
    assert np.isnan(large.scores().iou[5:]).all()
    assert large.scores().mean_iou == small.scores().mean_iou


def test_tensors_arrays_and_any_shape_count_alike():
    pred, target = random_labels()
    whole, flat, tensors = ConfusionMatrix(5), ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(pred, target)
    flat.update(pred.ravel().astype(np.int64), target.ravel().astype(np.int32))
    tensors.update(torch.from_numpy(pred).long(), torch.from_numpy(target))
    np.testing.assert_array_equal(whole.counts, flat.counts)
    np.testing.assert_array_equal(whole.counts, tensors.counts)
    assert whole.counts.sum() == (target != 255).sum()


def test_split_and_merged_equals_whole():
    pred, target = random_labels()
    whole, first, second = ConfusionMatrix(5), ConfusionMatrix(5), ConfusionMatrix(5)
    whole.update(pred, target)
    first.update(pred[:1], target[:1])
    second.update(pred[1:], target[1:])
    np.testing.assert_array_equal(first.merge(second).counts, whole.counts)
    with pytest.raises(ValueError, match="different classes"):
        first.merge(ConfusionMatrix(6))


def test_nothing_counted():
    matrix = ConfusionMatrix(3)
    matrix.update(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8))
    matrix.update(np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8))
    scores = matrix.scores()
    assert np.isnan(scores.iou).all()
    assert math.isnan(scores.mean_iou)
    assert math.isnan(scores.pixel_accuracy)


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        ([0, 1], [0, 1, 2], "shape"),
        ([0, 3], [0, 1], r"pred holds values 0\.\.3"),
        ([-1, 0], [0, 1], r"pred holds values -1\.\.0"),
        ([0, 1], [0, 3], r"target holds values 0\.\.3"),
        ([0, 1], [0, -1], r"target holds values -1\.\.0"),
        ([0, 1], [0, 256], r"target holds values 0\.\.256"),
        ([0.0, 1.0], [0, 1], "integer"),
    ],
)
def test_bad_input_is_refused_and_not_counted(pred, target, message):
    matrix = ConfusionMatrix(3)
    with pytest.raises(ValueError, match=message):
        matrix.update(np.array(pred), np.array(target))
    assert matrix.counts.sum() == 0


def test_negative_ignore_index():
    matrix = ConfusionMatrix(2, ignore_index=-1)
    matrix.update(torch.tensor([0, 1, 1]), torch.tensor([0, -1, 1]))
    np.testing.assert_array_equal(matrix.counts, [[1, 0], [0, 1]])


def test_any_prediction_is_accepted_where_the_truth_is_ignored():
    pred, target = random_labels()
    expected, found = ConfusionMatrix(5), ConfusionMatrix(5)
    expected.update(pred, target)
    found.update(np.where(target == 255, 255, pred), target)
    np.testing.assert_array_equal(found.counts, expected.counts)


@pytest.mark.parametrize("ignore_index", [None, 0, 3, 4])
def test_ignore_index_none_or_a_class_as_in_torchmetrics(ignore_index):
    from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

    pred, target = random_labels()
    target[target == 255] = 0
    matrix = ConfusionMatrix(5, ignore_index=ignore_index)
    matrix.update(pred, target)
    tensors = torch.from_numpy(pred).long(), torch.from_numpy(target).long()
    theirs = MulticlassConfusionMatrix(5, ignore_index=ignore_index)(*tensors)
    np.testing.assert_array_equal(matrix.counts, theirs.numpy())
    assert matrix.counts.sum() == target.size - (target == ignore_index).sum()
    mean = MulticlassJaccardIndex(5, ignore_index=ignore_index)(*tensors)
    assert matrix.scores().mean_iou == pytest.approx(float(mean), abs=1e-6)
    assert np.isnan(matrix.scores().iou).tolist() == [k == ignore_index for k in range(5)]
    with pytest.raises(ValueError, match=r"target holds values 5\.\.5"):
        matrix.update(np.array([0]), np.array([5]))


def _count_share(rank, store, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    pred, target = random_labels()
    matrix = ConfusionMatrix(5)
    matrix.update(pred[rank::2], target[rank::2])
    np.save(f"{folder}/{rank}.npy", matrix.all_sum().counts)
    torch.distributed.destroy_process_group()


def test_sum_over_two_processes(tmp_path):
    mp.spawn(_count_share, args=(tmp_path / "store", tmp_path), nprocs=2)
    pred, target = random_labels()
    whole = ConfusionMatrix(5)
    whole.update(pred, target)
    for rank in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"{rank}.npy"), whole.counts)


@pytest.mark.parametrize("decimals", [8, 1])  # 1: many equal scores
def test_average_precision_equals_sklearn(decimals):
    rng = np.random.default_rng(3)
    labels = (rng.random((40, 7)) < 0.25).astype(np.float32)
    labels[3] = 0
    labels[:, 2] = 0
    scores = np.round(rng.normal(size=(40, 7)), decimals).astype(np.float32)
    rows = [average_precision_score(y, s) for y, s in zip(labels, scores, strict=True) if y.any()]
    columns = [average_precision_score(y, s) for y, s in zip(labels.T, scores.T, strict=True) if y.any()]
    assert len(rows) < 40
    assert len(columns) == 6
    assert sample_mean_ap(labels, scores) == pytest.approx(np.mean(rows), abs=1e-12)
    assert class_mean_ap(labels, scores) == pytest.approx(np.mean(columns), abs=1e-12)
    assert sample_mean_ap(torch.from_numpy(labels), torch.from_numpy(scores)) == sample_mean_ap(
        labels, scores
    )


def test_average_precision_without_labels_and_of_bad_input():
    assert math.isnan(sample_mean_ap(np.zeros((2, 3)), np.zeros((2, 3))))
    with pytest.raises(ValueError, match="finite"):
        sample_mean_ap(np.ones((1, 2)), np.array([[0, np.nan]]))
    with pytest.raises(ValueError, match="0 or 1"):
        class_mean_ap(np.full((1, 2), 0.5), np.zeros((1, 2)))
    with pytest.raises(ValueError, match=r"\(N, C\)"):
        class_mean_ap(np.ones((1, 2)), np.zeros((2, 1)))
