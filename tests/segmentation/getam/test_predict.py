"""segmentation.getam.predict and generate_cam: protocol, files, continuing, COCO's numbers, refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from segmentation.getam import generate_cam
from segmentation.getam.attention_maps import getam_maps
from segmentation.getam.inference import PUBLISHED_SQUARES, predict_probs
from segmentation.getam.model import build_getam, load_getam
from segmentation.getam.pamr import PAMR
from tests.commands import argv, error_line, finish, run_here
from tests.miniature import make
from wsss.cam_files import maps_from_grids, read_cams
from wsss.checkpoint import save_checkpoint
from wsss.crf import crf_from_probs
from wsss.datasets import load_dataset
from wsss.errors import UserError
from wsss.io import read_image
from wsss.transforms import normalise, resize_bilinear

SQUARES = (64, 96)


def plain_probs(model, image, squares):
    total = 0
    for side in squares:
        pixels = normalise(resize_bilinear(image, (side, side)), model.pixel_mean, model.pixel_std)[None]
        with torch.no_grad():
            logits = model(pixels)[1]
        total = total + F.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)[0]
    return (total / len(squares)).softmax(0)


def test_published_squares():
    assert PUBLISHED_SQUARES == (256, 320, 480)


def test_probabilities_equal_the_plain_form(getam, miniature):
    model, _ = load_getam(getam / "last.pth")
    spec = load_dataset("folder", miniature)
    image = read_image(spec.image_path(spec.image_ids("val")[0]))
    found = predict_probs(model, image, squares=SQUARES)
    torch.testing.assert_close(found, plain_probs(model, image, SQUARES))
    torch.testing.assert_close(found.sum(0), torch.ones(image.shape[:2]))
    with pytest.raises(UserError, match="--squares 100: not a multiple of 32"):
        predict_probs(model, image, squares=(64, 100))


@pytest.mark.parametrize("crf", [False, True])
def test_predictions_and_their_score(crf, getam, miniature, tmp_path, capsys):
    options = ("--data-path", miniature, "--checkpoint", getam / "last.pth", "--squares", *SQUARES)
    options += ("--output-dir", tmp_path, "--workers", 0, "--overlays", 2, *(["--crf"] if crf else []))
    run_here("segmentation.getam.predict", *options)
    text = capsys.readouterr().out
    spec, (model, _) = load_dataset("folder", miniature), load_getam(getam / "last.pth")
    for image_id in spec.image_ids("val"):
        image = read_image(spec.image_path(image_id))
        probs = plain_probs(model, image, SQUARES).numpy()
        expected = crf_from_probs(image, probs, preset="getam") if crf else probs.argmax(0)
        found = Image.open(tmp_path / f"{image_id}.png")
        assert found.mode == "P"
        assert (np.array(found) == expected).mean() > 0.999, image_id
    assert len(list((tmp_path / "overlays").iterdir())) == 2
    score = json.loads((tmp_path / "score.json").read_text())
    assert score["squares"] == list(SQUARES) and score["crf_preset"] == ("getam" if crf else None)
    assert score["saliency"] == "without saliency maps"
    assert f"mIoU {100 * score['mean_iou']:.2f}%" in text and "trained without saliency maps" in text
    assert "wrote 6 label maps" in text


def test_continues_and_keeps_what_is_there(getam, miniature, tmp_path, capsys):
    options = ("--data-path", miniature, "--checkpoint", getam / "last.pth", "--squares", 64, "--workers", 0)
    run_here("segmentation.getam.predict", *options, "--output-dir", tmp_path)
    names = sorted(tmp_path.glob("*.png"))
    kept = {p: p.read_bytes() for p in names}
    times = {p: p.stat().st_mtime_ns for p in names[1:]}
    names[0].unlink()
    run_here("segmentation.getam.predict", *options, "--output-dir", tmp_path)
    assert {p: p.read_bytes() for p in names} == kept
    assert {p: p.stat().st_mtime_ns for p in names[1:]} == times
    assert "wrote 1 label maps" in capsys.readouterr().out
    line = error_line(capsys, "segmentation.getam.predict", *options, "--crf", "--output-dir", tmp_path)
    assert "crf was False, now True" in line


def test_two_processes_give_the_same_files(getam, miniature, tmp_path):
    options = ("--data-path", miniature, "--checkpoint", getam / "last.pth", "--squares", 64)
    for module, split in (("predict", "val"), ("generate_cam", "train")):
        for processes in (1, 2):
            folder = tmp_path / f"{module}{processes}"
            given = (
                *options[: 6 if module == "generate_cam" else 8],
                "--split",
                split,
                "--output-dir",
                folder,
            )
            finish(*argv(f"segmentation.getam.{module}", *given, processes=processes))
        pattern = "*.png" if module == "predict" else "*.npz"
        one, two = (
            {p.name: p.read_bytes() for p in (tmp_path / f"{module}{n}").glob(pattern)} for n in (1, 2)
        )
        assert one == two and one


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """COCO's layout and a network of its 80 classes."""
    folder = tmp_path_factory.mktemp("coco")
    root = make(folder / "data", "coco14", train=6, val=3)
    torch.manual_seed(0)
    model = build_getam("vit_micro", num_classes=80)
    content = {"model": model.state_dict(), "model_args": {"backbone": "vit_micro", "num_classes": 80}}
    save_checkpoint(folder / "coco.pth", content)
    return root, folder / "coco.pth", model.eval()


def test_coco_s_label_maps_hold_category_ids(coco, tmp_path):
    root, checkpoint, model = coco
    options = ("--dataset", "coco14", "--data-path", root, "--checkpoint", checkpoint, "--squares", 64)
    run_here("segmentation.getam.predict", *options, "--output-dir", tmp_path / "val", "--workers", 0)
    spec = load_dataset("coco14", root)
    values = np.array([0, *(k + 1 for k, n in enumerate(spec.class_names) if not n.startswith("unused"))])
    for image_id in spec.image_ids("val"):
        expected = plain_probs(model, read_image(spec.image_path(image_id)), (64,)).argmax(0).numpy()
        assert (np.array(Image.open(tmp_path / "val" / f"{image_id}.png")) == values[expected]).mean() > 0.999
    run_here(
        "segmentation.getam.generate_cam", *options, "--output-dir", tmp_path / "cams", "--split", "train"
    )
    for image_id in spec.image_ids("train"):
        found = read_cams(tmp_path / "cams" / f"{image_id}.npz")
        assert found.class_ids.tolist() == np.flatnonzero(spec.labels(image_id)).tolist()


def test_cam_files_hold_the_maps(getam, miniature, tmp_path, capsys):
    options = ("--data-path", miniature, "--checkpoint", getam / "last.pth", "--squares", *SQUARES, "--flip")
    run_here("segmentation.getam.generate_cam", *options, "--output-dir", tmp_path / "full", "--overlays", 1)
    run_here(
        "segmentation.getam.generate_cam",
        *options,
        "--output-dir",
        tmp_path / "compact",
        "--compact",
        "--overlays",
        2,
    )
    run_here("segmentation.getam.generate_cam", *options, "--output-dir", tmp_path / "pamr", "--pamr")
    spec, (model, _) = load_dataset("folder", miniature), load_getam(getam / "last.pth")
    for image_id in spec.image_ids("train"):
        image, labels = read_image(spec.image_path(image_id)), torch.from_numpy(spec.labels(image_id))
        grids = []
        for side in SQUARES:
            pixels = normalise(resize_bilinear(image, (side, side)), model.pixel_mean, model.pixel_std)
            batch = torch.stack((pixels, pixels.flip(-1)))
            maps = getam_maps(model, batch, labels.expand(2, -1))[:, labels > 0]
            maps = maps / maps.amax((2, 3), keepdim=True).clamp(min=1e-37)
            grids.append((maps[0] + maps[1].flip(-1)).numpy())
        expected = maps_from_grids(grids, image.shape[:2])
        found = read_cams(tmp_path / "full" / f"{image_id}.npz")
        assert found.class_ids.tolist() == np.flatnonzero(labels.numpy()).tolist()
        np.testing.assert_allclose(found.cams, expected, atol=2e-3)
        np.testing.assert_array_equal(read_cams(tmp_path / "compact" / f"{image_id}.npz").cams, found.cams)
        levels = torch.tensor(image).permute(2, 0, 1)[None].float()
        refined = PAMR()(levels, torch.from_numpy(expected)[None])[0]
        refined = refined / (refined.amax((1, 2), keepdim=True) + 1e-5)
        np.testing.assert_allclose(read_cams(tmp_path / "pamr" / f"{image_id}.npz").cams, refined, atol=3e-3)
    assert len(list((tmp_path / "full" / "overlays").iterdir())) == 1
    assert len(list((tmp_path / "compact" / "overlays").iterdir())) == 2
    assert "wrote 16 CAM files" in capsys.readouterr().out


def test_maps_go_through_the_threshold_search_and_become_masks(getam, miniature, tmp_path):
    """The multi-stage variant: files of this system, commands of the others."""
    options = ("--data-path", miniature, "--split", "train")
    cams, threshold, masks = (tmp_path / name for name in ("cams", "threshold", "masks"))
    how = ("--checkpoint", getam / "last.pth", "--squares", 64)
    run_here("segmentation.getam.generate_cam", *options, *how, "--output-dir", cams)
    run_here(
        "weaktr.search_threshold", *options, "--cam-dir", cams, "--output-dir", threshold, "--workers", 0
    )
    run_here(
        "weaktr.make_masks", *options, "--cam-dir", cams, "--output-dir", masks, "--workers", 0,
        "--threshold-file", threshold / "threshold.json",
    )  # fmt: skip
    assert len(list(masks.glob("*.png"))) == 16 and (masks / "score.json").is_file()


@pytest.mark.parametrize("form", ["unsquared", "grad_cam"])
def test_forms_differ(form, getam, miniature, tmp_path):
    how = {"squares": (64,), "flip": False}
    spec, (model, _) = load_dataset("folder", miniature), load_getam(getam / "last.pth")
    image_id = spec.image_ids("train")[0]
    image, classes = read_image(spec.image_path(image_id)), np.flatnonzero(spec.labels(image_id))
    one, other = (
        generate_cam.attention_grids(model, image, classes, form=f, **how)[0] for f in ("getam", form)
    )
    assert one.shape == other.shape == (len(classes), 4, 4) and np.abs(one - other).max() > 0.01


@pytest.mark.parametrize(
    ("module", "options", "words"),
    [
        ("predict", ("--squares", 100), "--squares 100: not a multiple of 32"),
        ("generate_cam", ("--squares", 64, 65), "--squares 65: not a multiple of 32"),
        ("generate_cam", ("--start-layer", 12), "--start-layer 12: the network has blocks 0..11"),
        ("generate_cam", ("--compact", "--pamr"), "leave one of them out"),
        ("predict", ("--backbone", "deit_tiny"), "is a vit_micro, not deit_tiny"),
    ],
)
def test_bad_options(module, options, words, getam, miniature, tmp_path, capsys):
    given = ("--data-path", miniature, "--checkpoint", getam / "last.pth", "--output-dir", tmp_path / "out")
    assert words in error_line(capsys, f"segmentation.getam.{module}", *given, *options)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_classes_is_refused(coco, miniature, tmp_path, capsys):
    options = ("--data-path", miniature, "--checkpoint", coco[1], "--output-dir", tmp_path / "out")
    assert "checkpoint of 80 classes" in error_line(capsys, "segmentation.getam.predict", *options)


def test_a_broken_picture_is_named(getam, miniature, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(miniature, root)
    spec = load_dataset("folder", root)
    path = spec.image_path(spec.image_ids("val")[2])
    path.write_bytes(path.read_bytes()[:200])
    options = ("--data-path", root, "--checkpoint", getam / "last.pth", "--squares", 64, "--workers", 0)
    line = error_line(capsys, "segmentation.getam.predict", *options, "--output-dir", tmp_path / "out")
    assert str(path) in line and len(list((tmp_path / "out").glob("*.png"))) == 2
