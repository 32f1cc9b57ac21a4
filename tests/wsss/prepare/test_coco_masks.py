"""COCO's regions, pixel by pixel: the three forms, overlaps, crowds, and what cannot be drawn."""

import json
import pickle

import numpy as np
import pytest
from pycocotools import mask as coco

from tests.miniature import boxes_mask
from wsss.errors import UserError
from wsss.io import read_mask, write_mask
from wsss.prepare import coco_masks
from wsss.prepare.coco_masks import Picture, Region, draw, encode, make_masks, read_pictures, run_lengths

SIZE = (40, 50)
LARGE, SMALL = (5, 5, 30, 30), (10, 8, 12, 6)


def box(x, y, w, h):
    return np.array([x, y, x + w, y, x + w, y + h, x, y + h], np.float64)


def runs(inside):
    """Uncompressed run lengths by counting, an implementation of its own."""
    counts, value = [0], 0
    for pixel in inside.T.reshape(-1).tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"counts": counts, "size": list(inside.shape)}


def drawn(*regions):
    return draw(Picture("000000000001", SIZE, list(regions)))[0]


def test_polygons_of_whole_pixels_are_their_boxes():
    mask = drawn(Region(1, 7, False, [box(*LARGE)]))
    expected = np.zeros(SIZE, np.uint8)
    expected[5:35, 5:35] = 7
    np.testing.assert_array_equal(mask, expected)


def test_several_polygons_are_one_region_and_its_whole_area_counts():
    """Two boxes of 100 pixels beside one of 150: together they are the larger, and so below."""
    mask = drawn(
        Region(1, 3, False, [box(0, 0, 15, 10)]),
        Region(2, 4, False, [box(10, 0, 10, 10), box(30, 20, 10, 10)]),
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[0:10, 10:20] = expected[20:30, 30:40] = 4
    expected[0:10, 0:15] = 3
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("small_first", [True, False])
@pytest.mark.parametrize(
    ("large_crowd", "small_crowd"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_smaller_on_top_with_crowds_in_the_order(small_first, large_crowd, small_crowd):
    regions = [
        Region(1, 18, small_crowd, runs(boxes_mask([SMALL], SIZE))),
        Region(2, 90, large_crowd, runs(boxes_mask([LARGE], SIZE))),
    ]
    mask = drawn(*(regions if small_first else regions[::-1]))
    expected = np.zeros(SIZE, np.uint8)
    expected[5:35, 5:35] = 255 if large_crowd else 90
    expected[8:14, 10:22] = 255 if small_crowd else 18
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("order", [1, -1])
def test_of_equal_sizes_the_higher_annotation_id_is_on_top(order):
    regions = [Region(10, 1, False, [box(0, 0, 10, 10)]), Region(11, 2, False, [box(5, 0, 10, 10)])]
    mask = drawn(*regions[::order])
    assert mask[0].tolist()[:16] == [1] * 5 + [2] * 10 + [0]


def test_compressed_and_plain_run_lengths_are_the_same_region():
    rng = np.random.RandomState(504)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        inside = rng.rand(*SIZE) < density
        plain = runs(inside)
        packed = coco.encode(np.asfortranarray(inside.astype(np.uint8)))
        assert run_lengths(packed["counts"]).tolist() == plain["counts"]
        for outline in (plain, {"counts": packed["counts"].decode(), "size": list(SIZE)}):
            mask = drawn(Region(1, 5, False, outline))
            np.testing.assert_array_equal(mask, np.where(inside, 5, 0))


def test_two_points_are_left_out_and_not_taken_for_a_box():
    picture = Picture("1", SIZE, [Region(1, 5, False, [np.array([1.0, 1, 20, 20]), box(0, 0, 2, 2)])])
    mask, dropped = draw(picture)
    assert dropped == 1 and np.argwhere(mask).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    mask, dropped = draw(Picture("1", SIZE, [Region(1, 5, False, [np.array([1.0, 1, 20, 20])])]))
    assert dropped == 1 and not mask.any()


@pytest.mark.parametrize(
    ("outline", "words"),
    [
        ([np.arange(7.0)], "no list of x, y"),
        ([np.array([0, 0, np.nan, 5, 5, 5])], "no list of x, y"),
        ({"counts": [0, 4], "size": [2, 2]}, "run lengths of [2, 2], not of [40, 50]"),
        ({"counts": [10, 5], "size": [40, 50]}, "do not add up to 50x40"),
        ({"counts": [10, 2005, -15], "size": [40, 50]}, "do not add up to 50x40"),
        ({"counts": "52", "size": [40, 50]}, "do not add up to 50x40"),
        ({"counts": "", "size": [40, 50]}, "do not add up"),
        ({"counts": "é\x00", "size": [40, 50]}, "do not add up"),
        ({"counts": "o" * 40, "size": [40, 50]}, "do not add up"),
        ({"counts": 17, "size": [40, 50]}, "do not add up"),
        ("abc", "run lengths of str"),
    ],
)
def test_regions_that_cannot_be_drawn_are_refused(outline, words):
    with pytest.raises(UserError) as stopped:
        encode(outline, SIZE, "x.json, annotation 3")
    assert str(stopped.value).startswith("x.json, annotation 3: ") and words in str(stopped.value)
    assert "fetch the official file" in str(stopped.value)


def _file(tmp_path, **changes):
    entry = {"id": 3, "image_id": 9, "category_id": 1, "iscrowd": 0, "segmentation": [[0, 0, 4, 0, 4, 4]]}
    images = [{"id": 9, "height": 40, "width": 50}, {"id": 10, "height": 1, "width": 1}]
    path = tmp_path / "instances_train2014.json"
    path.write_text(json.dumps({"images": images, "annotations": [entry | changes]}))
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"image_id": 8},
        {"category_id": 255},
        {"category_id": "x"},
        {"segmentation": [["a", "b"]]},
        {"segmentation": {"counts": [-1, 5], "size": [2, 2]}},
        {"id": None},
    ],
)
def test_files_not_as_cocos_are_refused(tmp_path, changes):
    with pytest.raises(UserError, match=r"instances_train2014\.json.*: not as COCO's .*; fetch the official"):
        read_pictures(_file(tmp_path, **changes))


def test_outlines_are_read_as_arrays_and_only_pictures_with_annotations(tmp_path):
    (picture,) = read_pictures(_file(tmp_path))
    assert (picture.image_id, picture.size) == ("000000000009", (40, 50))
    assert picture.regions[0].outline[0].dtype == np.float64
    (picture,) = read_pictures(_file(tmp_path, segmentation={"counts": [2000], "size": [40, 50]}))
    assert picture.regions[0].outline["counts"].dtype == np.uint32


def test_each_task_holds_one_picture_only(tmp_path, monkeypatch):
    """Workers get neither the file nor the list: what is pickled for them stays small."""
    sizes = []

    def watching(function, items, *, workers):
        sizes.append(len(pickle.dumps(function)))
        for item in items:
            sizes.append(len(pickle.dumps(item)))
            yield function(item)

    monkeypatch.setattr(coco_masks, "parallel_map", watching)
    pictures = [
        Picture(f"{n:012d}", SIZE, [Region(n, 1, False, [box(n, 1, k, 5) for k in range(1, 9)])])
        for n in range(100)
    ]
    whole = len(pickle.dumps(pictures))
    written, _ = make_masks(pictures, tmp_path, source="x", workers=2)
    assert written == 100 and pictures == [] and len(sizes) == 101
    assert max(sizes) < 2500 < whole / 30


def test_masks_of_the_right_size_are_kept_and_others_made_again(tmp_path):
    def pictures():
        return [Picture(f"{n:012d}", SIZE, [Region(n, 5, False, [box(*LARGE)])]) for n in range(4)]

    write_mask(tmp_path / "000000000000.png", np.full(SIZE, 9))
    write_mask(tmp_path / "000000000001.png", np.full((3, 3), 9))
    (tmp_path / "000000000002.png").write_bytes(b"half")
    assert make_masks(pictures(), tmp_path, source="x", workers=2) == (3, 0)
    assert (read_mask(tmp_path / "000000000000.png") == 9).all()
    for n in (1, 2, 3):
        np.testing.assert_array_equal(
            read_mask(tmp_path / f"{n:012d}.png"), np.where(boxes_mask([LARGE], SIZE), 5, 0)
        )
    assert make_masks(pictures(), tmp_path, source="x", workers=0) == (0, 0)
