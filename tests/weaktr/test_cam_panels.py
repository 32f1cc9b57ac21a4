"""Panels and head weights of CAM generation, as the command writes them."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import argv, error_line, finish, run_here
from weaktr.cams import multi_scale_cams
from weaktr.model import load_weaktr
from wsss.datasets import load_dataset
from wsss.io import read_image, read_mask
from wsss.panels import cam_overlay
from wsss.transforms import normalise, resize_bicubic
from wsss.visualize import overlay

MODULE = "weaktr.generate_cam"
NAMES = ("coarse", "cross", "fused", "picture", "truth")


def options(data, trained, folder, *more):
    found = ("--data-path", data, "--checkpoint", trained / "best.pth", "--output-dir", folder)
    return (*found, "--split", "val", *more)


def panels(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("panels/*/*"))}


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.glob("*.npz")}


def load(folder, image_id, name):
    return np.array(Image.open(folder / "panels" / image_id / f"{name}.png"))


def weights(folder):
    return json.loads((folder / "head_weights.json").read_text())


def with_two_unlabelled(miniature, folder):
    """A copy whose first and fourth picture of val have no class; returns the data and the ids of val."""
    shutil.copytree(miniature, folder)
    ids = (folder / "val.txt").read_text(encoding="utf8").splitlines()
    rows = (folder / "labels.csv").read_text(encoding="utf8").splitlines()
    rows = [f"{row.split(',')[0]}," if row.split(",")[0] in (ids[0], ids[3]) else row for row in rows]
    (folder / "labels.csv").write_text("\n".join(rows), encoding="utf8")
    return folder, ids


@pytest.fixture(scope="module")
def plain(miniature, trained, tmp_path_factory):
    """The CAM files of val without panels."""
    folder = tmp_path_factory.mktemp("plain")
    run_here(MODULE, *options(miniature, trained, folder))
    assert not (folder / "panels").exists() and not (folder / "head_weights.json").exists()
    return contents(folder)


@pytest.mark.parametrize(
    ("more", "how"),
    [
        ((), {"scales": (1.0, 1.2)}),
        (("--scales", 0.9, "--no-flip", "--no-refine"), {"scales": (0.9,), "flip": False, "refine": False}),
        (("--attention", "cross", "--max-side", 80), {"scales": (1.0, 1.2), "max_side": 80}),
    ],
)
def test_columns_are_the_cams_of_each_attention(more, how, miniature, trained, tmp_path):
    run_here(MODULE, *options(miniature, trained, tmp_path, *more, "--panels", 2))
    model, _ = load_weaktr(trained / "best.pth")
    spec = load_dataset("folder", miniature)
    ids = spec.image_ids("val")
    assert sorted(p.name for p in (tmp_path / "panels").iterdir()) == sorted([ids[0], ids[3]])  # of 6
    for image_id in (ids[0], ids[3]):
        assert sorted(p.stem for p in (tmp_path / "panels" / image_id).iterdir()) == sorted(NAMES)
        image, labels = read_image(spec.image_path(image_id)), spec.labels(image_id)
        np.testing.assert_array_equal(load(tmp_path, image_id, "picture"), image)
        truth = overlay(image, read_mask(spec.mask_path(image_id)))
        np.testing.assert_array_equal(load(tmp_path, image_id, "truth"), truth)
        for attention in ("coarse", "cross", "fused"):
            cams = multi_scale_cams(model, image, labels, attention=attention, **how)
            expected = cam_overlay(image, cams, np.flatnonzero(labels))
            np.testing.assert_array_equal(load(tmp_path, image_id, attention), expected)
    fused, coarse, cross = (load(tmp_path, ids[0], name) for name in ("fused", "coarse", "cross"))
    assert (fused != coarse).any() and (fused != cross).any()


def test_head_weights_are_the_mean_over_pictures_scales_and_mirrors(miniature, trained, tmp_path):
    run_here(MODULE, *options(miniature, trained, tmp_path, "--panels", 3))
    model, _ = load_weaktr(trained / "best.pth")
    spec = load_dataset("folder", miniature)
    total = []
    for image_id in spec.image_ids("val")[::2]:
        image = read_image(spec.image_path(image_id))
        for scale in (1.0, 1.2):
            size = tuple(int(np.round(side * scale)) for side in image.shape[:2])
            pixels = normalise(resize_bicubic(image, size), model.pixel_mean, model.pixel_std)
            total += [model.cams(p[None]).head_weights[0] for p in (pixels, pixels.flip(-1))]
    found = weights(tmp_path)
    assert found["images"] == 3
    assert np.shape(found["weights"]) == (model.num_heads, len(model.blocks))
    np.testing.assert_allclose(found["weights"], torch.stack(total).mean(0), rtol=1e-5)
    assert np.std(found["weights"]) > 0


def test_without_a_class_three_columns_are_the_picture(miniature, trained, tmp_path):
    data, ids = with_two_unlabelled(miniature, tmp_path / "data")
    out = tmp_path / "out"
    run_here(MODULE, *options(data, trained, out, "--panels", 6))
    for image_id in ids:
        plain = [np.array_equal(load(out, image_id, n), load(out, image_id, "picture")) for n in NAMES[:3]]
        assert plain == [image_id in (ids[0], ids[3])] * 3
    assert weights(out)["images"] == 4
    run_here(MODULE, *options(data, trained, tmp_path / "none", "--panels", 2))  # just the two
    assert len(panels(tmp_path / "none")) == 10 and not (tmp_path / "none" / "head_weights.json").exists()
    predicted = ("--panels", 2, "--predicted-labels", 0)
    run_here(MODULE, *options(data, trained, tmp_path / "predicted", *predicted))
    assert weights(tmp_path / "predicted")["images"] == 2
    found = load(tmp_path / "predicted", ids[0], "fused")
    assert (found != load(tmp_path / "predicted", ids[0], "picture")).any()


def test_two_processes_share_the_panels_and_the_mean(miniature, trained, plain, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run_here(MODULE, *options(miniature, trained, one, "--panels", 4))
    printed = finish(*argv(MODULE, *options(miniature, trained, two, "--panels", 4), processes=2))
    assert printed.count("wrote panels of 4 pictures") == 1
    assert len(panels(one)) == 20 and panels(one) == panels(two)
    assert weights(one)["images"] == weights(two)["images"] == 4
    np.testing.assert_allclose(weights(two)["weights"], weights(one)["weights"], rtol=1e-6)
    assert contents(one) == contents(two) == plain


def test_a_finished_run_gets_panels_and_overwrite_removes_them(miniature, trained, plain, tmp_path, capsys):
    out = tmp_path / "out"
    run_here(MODULE, *options(miniature, trained, out))
    times = {p.name: p.stat().st_mtime_ns for p in out.glob("*.npz")}
    capsys.readouterr()
    run_here(MODULE, *options(miniature, trained, out, "--panels", 1))
    assert "6 were there already" in capsys.readouterr().out
    assert {p.name: p.stat().st_mtime_ns for p in out.glob("*.npz")} == times and contents(out) == plain
    assert len(panels(out)) == 5 and weights(out)["images"] == 1
    run_here(MODULE, *options(miniature, trained, out))  # asks for none, and keeps them
    assert len(panels(out)) == 5
    run_here(MODULE, *options(miniature, trained, out, "--no-flip", "--overwrite"))
    assert not (out / "panels").exists() and not (out / "head_weights.json").exists()
    assert len(contents(out)) == 6 and contents(out) != plain


def test_a_mask_of_another_size_and_no_mask(miniature, trained, tmp_path, capsys):
    data, ids = with_two_unlabelled(miniature, tmp_path / "data")
    mask = data / "masks" / f"{ids[0]}.png"
    Image.new("L", (7, 5)).save(mask)
    line = error_line(capsys, MODULE, *options(data, trained, tmp_path / "a", "--panels", 1))
    assert f"{ids[0]}.png: is 7x5, its picture " in line
    mask.unlink()
    run_here(MODULE, *options(data, trained, tmp_path / "b", "--panels", 1))
    assert sorted(p.stem for p in (tmp_path / "b").glob("panels/*/*")) == sorted(NAMES[:4])
