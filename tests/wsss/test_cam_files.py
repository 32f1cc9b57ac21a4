"""The CAM format: both forms give the same bits, equal input equal bytes, bad files one line."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wsss.cam_files import label_map, maps_from_grids, read_cams, write_cams, write_compact_cams
from wsss.errors import UserError

SIZE = (37, 53)


def random_grids(n=3, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.gamma(1.0, size=(n, *hw)).astype(np.float32) for hw in ((2, 3), (4, 5), (1, 7))]


def test_maps_from_grids_equal_the_formula():
    grids = random_grids()
    total = sum(F.interpolate(torch.from_numpy(g)[None].double(), SIZE, mode="bilinear")[0] for g in grids)
    low, high = total.amin((1, 2), keepdim=True), total.amax((1, 2), keepdim=True)
    maps = maps_from_grids(grids, SIZE)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, ((total - low) / (high - low + 1e-8)).numpy(), atol=2e-6)
    assert (maps.min(axis=(1, 2)) == 0).all()


def test_a_map_does_not_depend_on_its_neighbours():
    grids = random_grids(n=9)
    together = maps_from_grids(grids, SIZE)
    for i in range(9):
        alone = maps_from_grids([torch.from_numpy(g)[i : i + 1] for g in grids], SIZE)
        np.testing.assert_array_equal(alone[0], together[i])


def test_constant_map_is_zero():
    assert (maps_from_grids([np.full((1, 2, 2), 5, np.float32)], (4, 6)) == 0).all()


@pytest.mark.parametrize("n", [0, 1, 4])
def test_compact_reads_bit_equal_to_full(tmp_path, n):
    grids, ids = random_grids(n), np.arange(n) * 3
    write_cams(tmp_path / "full.npz", maps_from_grids(grids, SIZE), ids)
    write_compact_cams(tmp_path / "compact.npz", grids, ids, SIZE)
    full, compact = read_cams(tmp_path / "full.npz"), read_cams(tmp_path / "compact.npz")
    assert full.cams.dtype == compact.cams.dtype == np.float16
    assert full.cams.shape == (n, *SIZE)
    np.testing.assert_array_equal(full.cams.view(np.uint16), compact.cams.view(np.uint16))
    np.testing.assert_array_equal(full.class_ids, ids)
    np.testing.assert_array_equal(compact.class_ids, ids)
    assert full.class_ids.dtype == compact.class_ids.dtype == np.int64


def test_the_format_is_what_the_documentation_says(tmp_path):
    write_cams(tmp_path / "a.npz", np.full((2, 3, 4), 0.3, np.float32), [5, 1])
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == {"cams", "class_ids"}
        assert file["cams"].dtype == np.float16
        np.testing.assert_array_equal(file["cams"], np.full((2, 3, 4), np.float16(0.3)))
        assert file["class_ids"].dtype == np.int64
    write_compact_cams(tmp_path / "b.npz", random_grids(2), [5, 1], SIZE)
    with np.load(tmp_path / "b.npz", allow_pickle=False) as file:
        assert set(file.files) == {"grid_0", "grid_1", "grid_2", "class_ids", "size"}
        assert tuple(file["size"]) == SIZE


def test_equal_input_gives_equal_bytes(tmp_path):
    for i in range(2):
        write_cams(tmp_path / f"full{i}.npz", maps_from_grids(random_grids(), SIZE), [0, 1, 2])
        write_compact_cams(tmp_path / f"compact{i}.npz", random_grids(), [0, 1, 2], SIZE)
    for form in ("full", "compact"):
        assert (tmp_path / f"{form}0.npz").read_bytes() == (tmp_path / f"{form}1.npz").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4  # and no temporary file is left


def test_writers_refuse_what_readers_would(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        write_cams(tmp_path / "a.npz", np.full((1, 2, 2), np.nan), [0])
    with pytest.raises(ValueError, match="2 maps need 2 class_ids"):
        write_cams(tmp_path / "a.npz", np.zeros((2, 2, 2)), [0])
    with pytest.raises(ValueError, match="the same for every scale"):
        write_compact_cams(tmp_path / "a.npz", [np.zeros((1, 2, 2)), np.zeros((2, 2, 2))], [0], SIZE)
    assert not list(tmp_path.iterdir())


def bad_files(folder):
    write_cams(folder / "good.npz", np.random.default_rng(0).random((2, 30, 30)), [0, 1])
    good = (folder / "good.npz").read_bytes()
    contents = {"truncated": good[: len(good) // 2], "empty": b"", "text": b"not an archive"}
    contents["flipped"] = good[:500] + bytes([good[500] ^ 255]) + good[501:]
    for name, content in contents.items():
        (folder / f"{name}.npz").write_bytes(content)
    np.save(folder / "array.npy", np.zeros(3))
    (folder / "array.npy").rename(folder / "array.npz")
    np.savez(folder / "pickled.npz", cams=np.array([{}], dtype=object), class_ids=np.zeros(1, int))
    np.savez(folder / "no_ids.npz", cams=np.zeros((1, 2, 2), np.float16))
    np.savez(folder / "no_maps.npz", class_ids=np.zeros(1, int))
    np.savez(folder / "no_size.npz", grid_0=np.zeros((1, 2, 2)), class_ids=np.zeros(1, int))
    np.savez(folder / "count.npz", cams=np.zeros((2, 2, 2), np.float16), class_ids=np.zeros(1, int))
    np.savez(folder / "nan.npz", cams=np.full((1, 2, 2), np.nan), class_ids=np.zeros(1, int))
    np.savez(folder / "integers.npz", cams=np.zeros((1, 2, 2), int), class_ids=np.zeros(1, int))
    return [path for path in sorted(folder.iterdir()) if path.stem != "good"]


def test_bad_files_are_named_with_a_remedy(tmp_path):
    paths = bad_files(tmp_path)
    assert len(paths) == 12
    for path in paths:
        with pytest.raises(UserError) as raised:
            read_cams(path)
        assert str(path) in str(raised.value)
        assert "weaktr.generate_cam again" in str(raised.value)
    with pytest.raises(UserError, match=r"missing\.npz: no such CAM file; .*generate_cam"):
        read_cams(tmp_path / "missing.npz")


def test_label_map_compares_exactly_and_takes_the_first_of_equals():
    cams = np.array([[[0.43, 0.2, 0.5]], [[0.1, 0.7, 0.5]]], dtype=np.float16)
    assert float(cams[0, 0, 0]) < 0.43 < float(np.nextafter(cams[0, 0, 0], np.float16(1)))
    np.testing.assert_array_equal(label_map(cams, 0.43), [[0, 2, 1]])
    np.testing.assert_array_equal(label_map(cams, float(cams[0, 0, 0])), [[0, 2, 1]])  # a tie is background
    np.testing.assert_array_equal(label_map(cams, 0.4299), [[1, 2, 1]])
    np.testing.assert_array_equal(label_map(cams[:0], 0.1), [[0, 0, 0]])
