"""segmentation.predict: its files against predict_probs, score, continuing, any pictures, bad input."""

import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import segmentation.label_maps
import segmentation.memory
from segmentation.describe import chosen_by
from segmentation.inference import PUBLISHED_SCALES, Protocol, predict_probs
from segmentation.memory import fitting_protocol, needed_memory
from segmentation.predict import Config, make_protocol
from segmentation.segmenter import build_segmenter, load_segmenter
from tests.commands import ROOT, argv, error_line, finish, run_here, run_process
from wsss.checkpoint import save_checkpoint
from wsss.crf import crf_from_probs
from wsss.errors import UserError
from wsss.io import read_image, write_image
from wsss.visualize import overlay

MODULE = "segmentation.predict"
NAMES = ("disc", "square", "triangle")
SINGLE = Protocol(short_side=72, window=64, stride=48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that has learned nothing, saved as training saves it; its label maps hold every class."""
    torch.manual_seed(0)
    model = build_segmenter("vit_micro_patch8_96", num_classes=4, image_size=64)
    return save(tmp_path_factory.mktemp("segmenter") / "best.pth", model)


def save(path, model, **entries):
    content = {
        "model": model.state_dict(),
        "model_args": {
            "backbone": model.backbone,
            "num_classes": model.num_classes,
            "image_size": model.image_size,
        },
        "class_names": list(NAMES),
        "preprocessing": {"short_side": 72, "window": 64, "stride": 48},
        "options": {"dataset": "folder", "short_side": 72, "window": None, "stride": None},
        "step": 8,
        "best": {"step": 8, "epoch": 2, "score": 0.25, "measure": "val_miou", "split": "val", "every": 2},
    }
    save_checkpoint(path, content | entries)
    return path


def val_ids(data):
    return (data / "val.txt").read_text(encoding="utf8").split("\n")[:-1]


def picture(data, image_id):
    return next(p for p in (data / "images").iterdir() if p.stem == image_id)


def files(folder, *patterns):
    """Name -> content of everything that is written per picture."""
    patterns = patterns or ("*.png", "overlays/*", "probabilities/*")
    return {str(p.relative_to(folder)): p.read_bytes() for g in patterns for p in Path(folder).glob(g)}


def expected_probs(checkpoint, path, protocol, **how):
    model, _ = load_segmenter(checkpoint)
    return predict_probs(model, read_image(path), protocol, **how)


# ------------------------------------------------------------------------------------------- the files


@pytest.mark.parametrize(
    ("options", "protocol"),
    [
        ((), SINGLE),
        (("--scales", 0.75, 1.25), Protocol(72, (0.75, 1.25), True, 64, 48)),
        (
            ("--scales", 1, 1.5, "--no-flip", "--decoder-blocks", "fused", "--window", 56, "--stride", 40),
            Protocol(72, (1.0, 1.5), False, 56, 40, 8, "fused"),
        ),
    ],
)
def test_label_maps_probabilities_and_overlays(options, protocol, miniature, checkpoint, tmp_path):
    run_here(
        MODULE, "--data-path", miniature, "--checkpoint", checkpoint, "--output-dir", tmp_path,
        "--overlays", "all", "--probabilities", "--workers", 0, *options,
    )  # fmt: skip
    ids = val_ids(miniature)
    assert len(files(tmp_path)) == 3 * len(ids)
    found = set()
    for image_id in ids:
        path = picture(miniature, image_id)
        probs = expected_probs(checkpoint, path, protocol)
        mask = Image.open(tmp_path / f"{image_id}.png")
        assert mask.mode == "P"
        labels = np.array(mask)
        np.testing.assert_array_equal(labels, probs.argmax(0))
        shown = np.array(Image.open(tmp_path / "overlays" / f"{image_id}.png"))
        np.testing.assert_array_equal(shown, overlay(read_image(path), labels))
        with np.load(tmp_path / "probabilities" / f"{image_id}.npz") as file:
            assert file["class_names"].tolist() == ["background", *NAMES]
            assert file["probs"].dtype == np.float16
            np.testing.assert_array_equal(file["probs"], probs.numpy().astype(np.float16))
        total = 1.8 if protocol.decoder_blocks == "fused" else 1
        np.testing.assert_allclose(probs.sum(0), total, rtol=1e-5)
        found |= set(np.unique(labels))
    assert found == {0, 1, 2, 3}


@pytest.mark.parametrize("workers", [0, 1])
def test_crf_equals_that_on_all_probabilities(workers, miniature, checkpoint, tmp_path):
    pytest.importorskip("pydensecrf")
    path = picture(miniature, val_ids(miniature)[0])
    run_here(
        MODULE, "--images", path, "--checkpoint", checkpoint, "--output-dir", tmp_path, "--crf",
        "--decoder-blocks", "fused", "--scales", 1, 1.25, "--workers", workers,
    )  # fmt: skip
    protocol = Protocol(72, (1.0, 1.25), True, 64, 48, 8, "fused")
    probs = expected_probs(checkpoint, path, protocol).numpy()
    labels = np.array(Image.open(tmp_path / f"{path.stem}.png"))
    np.testing.assert_array_equal(labels, crf_from_probs(read_image(path), probs))
    assert (labels != probs.argmax(0)).any()
    assert json.loads((tmp_path / "config.json").read_text())["crf_preset"] == "voc12_segmentation"


def test_crf_preset_follows_the_data_the_network_was_trained_on(miniature, checkpoint, tmp_path):
    pytest.importorskip("pydensecrf")
    model, _ = load_segmenter(checkpoint)
    coco = save(tmp_path / "coco.pth", model, options={"dataset": "coco14"})
    path = picture(miniature, val_ids(miniature)[0])
    run_here(MODULE, "--images", path, "--checkpoint", coco, "--output-dir", tmp_path / "out", "--crf")
    assert json.loads((tmp_path / "out/config.json").read_text())["crf_preset"] == "coco14_segmentation"
    probs = expected_probs(coco, path, Protocol(72, window=64, stride=48))
    expected = crf_from_probs(read_image(path), probs, preset="coco14_segmentation")
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out" / f"{path.stem}.png")), expected)


def test_score_equals_the_scorer_and_says_what_it_depends_on(miniature, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    run_here(MODULE, "--data-path", miniature, "--checkpoint", checkpoint, "--output-dir", out)
    printed = capsys.readouterr().out
    run_here("wsss.score", "--data-path", miniature, "--pred-dir", out, "--output-dir", tmp_path / "score")
    ours, theirs = (json.loads((f / "score.json").read_text()) for f in (out, tmp_path / "score"))
    assert {k: ours[k] for k in theirs} == theirs
    assert 0 < ours["mean_iou"] < 0.5
    assert ours["backbone"] == "vit_micro_patch8_96" and ours["pixel_mean"] == [127.5] * 3
    assert ours["checkpoint_chosen_by"] == "step 8, best val_miou: 25.00% on val, one picture in 2"
    assert (ours["scales"], ours["mirrors"], ours["decoder_blocks"]) == ([1.0], False, "last")
    assert (ours["short_side"], ours["window"], ours["stride"]) == (72, 64, 48)
    assert ours["crf_preset"] is None and ours["amp"] == "float32"
    assert (
        f"mIoU {100 * ours['mean_iou']:.2f}% | val, 6 pictures | vit_micro_patch8_96, "
        "mean/std 127.5 127.5 127.5 / 127.5 127.5 127.5 | scales 1, no mirror | "
        "short side 72, windows of 64 every 48 | last decoder block | no CRF\n"
    ) in printed
    assert printed.splitlines()[-1].startswith(f"next: python -m {MODULE} --dataset folder --data-path")
    assert "--multi-scale --decoder-blocks fused --crf" in printed.splitlines()[-1]


def test_without_masks_there_is_no_score(miniature_without_masks, checkpoint, tmp_path, capsys):
    options = ("--data-path", miniature_without_masks, "--checkpoint", checkpoint, "--output-dir", tmp_path)
    run_here(MODULE, *options, "--split", "train")
    assert "no score, not every picture has a mask | train, 16 pictures |" in capsys.readouterr().out
    assert len(files(tmp_path)) == 16 and not (tmp_path / "score.json").exists()


def test_mixed_precision_is_recorded(miniature, checkpoint, tmp_path, capsys):
    options = ("--data-path", miniature, "--checkpoint", checkpoint, "--output-dir", tmp_path)
    run_here(MODULE, *options, "--amp", "bfloat16")
    assert "| no CRF | bfloat16\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "score.json").read_text())["amp"] == "bfloat16"


# ------------------------------------------------------------------------- continuing, several processes


def test_killed_inside_a_write(miniature, checkpoint, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    options = ("--data-path", miniature, "--checkpoint", checkpoint, "--overlays", 3, "--probabilities")
    options = (*options, "--workers", 0)
    command = (sys.executable, ROOT / "tests" / "die_in_write.py", 3, ".npz", MODULE)
    done = run_process(*command, *options, "--output-dir", killed)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert len(files(killed, "*.png")) == 3 and len(files(killed, "probabilities/*.npz")) == 2
    assert len(files(killed, "probabilities/.*.npz.tmp")) == 1
    run_here(MODULE, *options, "--output-dir", killed)
    run_here(MODULE, *options, "--output-dir", whole)
    assert len(files(whole)) == 6 + 3 + 6
    assert files(killed) == files(whole)
    assert not list(killed.rglob(".*tmp"))


def test_two_processes_give_the_same_bytes(miniature, checkpoint, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = ("--data-path", miniature, "--checkpoint", checkpoint, "--overlays", "all", "--probabilities")
    run_here(MODULE, *options, "--output-dir", one, "--workers", 0)
    printed = finish(*argv(MODULE, *options, "--output-dir", two, "--workers", 1, processes=2))
    assert len(files(one)) == 18 and files(one) == files(two)
    assert printed.count("wrote 6 label maps") == 1
    ours, theirs = (json.loads((f / "score.json").read_text()) for f in (one, two))
    assert ours | {"pred_dir": ""} == theirs | {"pred_dir": ""}


def test_existing_files_are_kept_and_overlays_come_from_them(
    miniature, checkpoint, tmp_path, capsys, monkeypatch
):
    options = ("--data-path", miniature, "--checkpoint", checkpoint, "--output-dir", tmp_path)
    run_here(MODULE, *options)
    before = files(tmp_path)
    monkeypatch.setattr(segmentation.label_maps, "predict_in_memory", None)
    run_here(MODULE, *options, "--overlays", "2", "--window-batch", 1, "--workers", 0)
    assert "wrote 0 label maps" in (printed := capsys.readouterr().out) and "6 were there" in printed
    assert files(tmp_path, "*.png") == before
    first, second, *_ = val_ids(miniature)
    assert sorted(files(tmp_path, "overlays/*")) == sorted(f"overlays/{i}.png" for i in (first, second))
    labels = np.array(Image.open(tmp_path / f"{first}.png"))
    shown = np.array(Image.open(tmp_path / "overlays" / f"{first}.png"))
    np.testing.assert_array_equal(shown, overlay(read_image(picture(miniature, first)), labels))
    line = error_line(capsys, MODULE, *options, "--scales", 1, 1.5)
    assert "scales was [1.0], now [1.0, 1.5]" in line and "--overwrite" in line
    assert files(tmp_path, "*.png") == before


def test_panels_come_from_label_maps_new_or_kept(miniature, checkpoint, tmp_path, capsys):
    """Two with new label maps; then three by two processes, which find every label map there."""
    options = ("--data-path", miniature, "--checkpoint", checkpoint, "--output-dir", tmp_path, "--workers", 0)
    run_here(MODULE, *options, "--panels", 2)
    assert "wrote panels of 2 pictures" in capsys.readouterr().out
    printed = finish(*argv(MODULE, *options, "--panels", 3, processes=2))
    assert printed.count("wrote panels of 3 pictures") == 1 and "wrote 0 label maps" in printed
    ids = val_ids(miniature)
    names = ("picture", "prediction", "truth")
    shown = {ids[0], ids[3]} | {ids[0], ids[2], ids[4]}
    assert set(files(tmp_path, "panels/*/*")) == {f"panels/{i}/{name}.png" for i in shown for name in names}
    for image_id in shown:
        image = read_image(picture(miniature, image_id))
        maps = (tmp_path / f"{image_id}.png", miniature / "masks" / f"{image_id}.png")
        expected = (image, *(overlay(image, np.array(Image.open(path))) for path in maps))
        for name, picture_of in zip(names, expected, strict=True):
            found = np.array(Image.open(tmp_path / "panels" / image_id / f"{name}.png"))
            np.testing.assert_array_equal(found, picture_of)
    run_here(MODULE, *options, "--scales", 1.5, "--overwrite")
    assert not (tmp_path / "panels").exists()


def test_panels_of_any_pictures_have_no_truth(miniature, checkpoint, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    wide = Image.open(picture(miniature, "mini_000")).convert("RGB").resize((600, 150))
    wide.save(photos / "wide.png")
    options = ("--images", photos, "--checkpoint", checkpoint, "--output-dir", tmp_path / "out")
    run_here(MODULE, *options, "--panels", 5)
    found = sorted(files(tmp_path / "out", "panels/*/*"))
    assert found == ["panels/wide/picture.png", "panels/wide/prediction.png"]
    assert {Image.open(tmp_path / "out" / name).size for name in found} == {(256, 64)}


# --------------------------------------------------------------------------------------- any pictures


def test_folder_of_pictures_of_every_kind(miniature, checkpoint, tmp_path, capsys):
    """Converted as docs/data.md says; what is no picture, hidden or in a subfolder is left out."""
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    original = Image.open(picture(miniature, "mini_000"))
    original.save(photos / "plain.PNG")
    for name, mode in {"grey": "L", "alpha": "RGBA", "palette": "P"}.items():
        original.convert(mode).save(photos / f"{name}.png")
    original.convert("CMYK").save(photos / "press.jpg")
    deep = np.array(original.convert("L")).astype(np.uint16) * 256
    Image.fromarray(deep).save(photos / "deep.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    original.save(photos / "a photo, turned.jpg", exif=exif)
    Image.new("RGB", (20, 9), "red").save(photos / "small.bmp")
    Image.new("RGB", (1, 12), "red").save(photos / "column.webp")
    original.save(photos / "sub" / "below.png")
    original.save(photos / ".hidden.png")
    (photos / "notes.txt").write_text("no picture")
    command = (MODULE, "--images", photos, "--checkpoint", checkpoint, "--output-dir")
    run_here(*command, tmp_path / "out", "--overlays", "all")
    assert f"{photos}, 9 pictures | vit_micro_patch8_96" in capsys.readouterr().out
    sizes = {p.stem: Image.open(p).size for p in (tmp_path / "out").glob("*.png")}
    own = {p.stem: Image.open(p).size for p in photos.iterdir() if p.stem in sizes}
    assert sizes == own and len(sizes) == 9 and sizes["column"] == (1, 12)
    read = {n: np.array(Image.open(tmp_path / "out" / f"{n}.png")) for n in ("grey", "deep", "plain")}
    assert np.array_equal(read["grey"], read["deep"])
    probs = expected_probs(checkpoint, photos / "plain.PNG", SINGLE)
    assert np.array_equal(read["plain"], probs.argmax(0))
    run_here(*command, tmp_path / "upright", "--exif")
    turned = Image.open(tmp_path / "upright" / "a photo, turned.png")
    assert turned.size == original.size[::-1]


def test_one_file_names_of_classes_and_another_run(miniature, checkpoint, tmp_path, capsys):
    """Without class names in the checkpoint they are numbered; a file may have any suffix."""
    model, _ = load_segmenter(checkpoint)
    nameless = save(tmp_path / "nameless.pth", model, class_names=None)
    photo = tmp_path / "photo.upload"
    photo.write_bytes(picture(miniature, "mini_001").read_bytes())
    options = ("--images", photo, "--checkpoint", nameless, "--output-dir", tmp_path / "out")
    run_here(MODULE, *options, "--probabilities")
    assert sorted(files(tmp_path / "out")) == ["photo.png", "probabilities/photo.npz"]
    with np.load(tmp_path / "out" / "probabilities" / "photo.npz") as file:
        assert file["class_names"].tolist() == ["background", "class 1", "class 2", "class 3"]
    assert "done: --overlays all" in capsys.readouterr().out
    other = ("--images", picture(miniature, "mini_001"), *options[2:])
    assert "images was" in error_line(capsys, MODULE, *other)


def test_max_side(miniature, checkpoint, tmp_path):
    path = picture(miniature, "mini_000")
    options = ("--images", path, "--checkpoint", checkpoint, "--output-dir", tmp_path, "--max-side", 50)
    run_here(MODULE, *options)
    labels = np.array(Image.open(tmp_path / "mini_000.png"))
    probs = expected_probs(checkpoint, path, SINGLE, max_side=50)
    assert labels.shape == read_image(path).shape[:2]
    np.testing.assert_array_equal(labels, probs.argmax(0))
    assert (labels != expected_probs(checkpoint, path, SINGLE).argmax(0).numpy()).any()


def test_picture_that_memory_cannot_hold(checkpoint, tmp_path, capsys, monkeypatch):
    model, _ = load_segmenter(checkpoint)
    fixed, probs = needed_memory(model, (600, 900), SINGLE)
    write_image(tmp_path / "large.png", np.zeros((600, 900, 3), np.uint8))
    free = int((fixed + 0.9 * probs) / 0.8)
    monkeypatch.setattr(segmentation.memory, "free_memory", lambda device: free)
    common = ("--checkpoint", checkpoint, "--output-dir", tmp_path / "out")
    options = ("--images", tmp_path / "large.png", *common)
    line = error_line(capsys, MODULE, *options)
    assert "large.png: 900x600 pixels" in line and "GiB are free" in line
    side = int(line.rsplit("--max-side ", 1)[1])
    assert 100 <= side < 900
    run_here(MODULE, *options, "--max-side", side)
    assert Image.open(tmp_path / "out" / "large.png").size == (900, 600)
    # a line of pixels grows to a window's height: no --max-side helps
    monkeypatch.setattr(segmentation.memory, "free_memory", lambda device: 10**8)
    write_image(tmp_path / "line.png", np.zeros((1, 60_000, 3), np.uint8))
    line = error_line(capsys, MODULE, "--images", tmp_path / "line.png", *common, "--overwrite")
    assert "line.png" in line and "leave it out" in line
    assert not files(tmp_path / "out")


def test_fewer_windows_at_a_time_where_memory_is_short(checkpoint, monkeypatch):
    model, _ = load_segmenter(checkpoint)
    many = Protocol(short_side=300, window=64, stride=32, window_batch=8)
    two, one = (sum(needed_memory(model, (300, 400), replace(many, window_batch=n))) for n in (2, 1))
    for free, batch in ((two, 2), (two - 1, 1), (one, 1)):
        monkeypatch.setattr(segmentation.memory, "free_memory", lambda device, free=free: free / 0.8)
        assert fitting_protocol(model, (300, 400), many) == replace(many, window_batch=batch)
    monkeypatch.setattr(segmentation.memory, "free_memory", lambda device: one / 0.8 - 1)
    with pytest.raises(UserError, match="--max-side"):
        fitting_protocol(model, (300, 400), many)


def test_a_network_of_stage_1_is_named(trained, miniature, tmp_path, capsys):
    line = error_line(
        capsys, MODULE, "--data-path", miniature, "--checkpoint", trained / "best.pth",
        "--output-dir", tmp_path / "out",
    )  # fmt: skip
    assert "best.pth: is a network of stage 1" in line and not (tmp_path / "out").exists()


def test_needed_memory_grows_with_what_is_asked(checkpoint):
    model, _ = load_segmenter(checkpoint)
    fixed, probs = needed_memory(model, (200, 300), SINGLE)
    assert probs == 4 * 4 * 200 * 300 * 3  # logits, softmax, sum over views
    for protocol in (Protocol(72, (1.0,), True, 64, 48), Protocol(72, (1.0,), False, 64, 48, 8, "fused")):
        more = needed_memory(model, (200, 300), protocol)
        assert more[0] > fixed and more[1] > probs
    assert needed_memory(model, (400, 600), SINGLE) == (fixed, 4 * probs)  # the network sees the same size


# ---------------------------------------------------------------------------- options and checkpoints


def test_protocol_from_options_training_or_publication(tmp_path):
    def protocol(trained=None, **options):
        return make_protocol(Config(checkpoint=tmp_path, output_dir=tmp_path, **options), trained or {})

    assert protocol() == Protocol()  # 520, 480, 320, one scale, no mirror
    trained = {"short_side": 208, "window": 192, "stride": 128}
    assert protocol(trained) == Protocol(short_side=208, window=192, stride=128)
    assert protocol({"short_side": 208, "window": None}).window == 480
    assert protocol(trained, window=96) == Protocol(short_side=208, window=96, stride=64)
    assert protocol(trained, short_side=100, stride=10) == Protocol(short_side=100, window=192, stride=10)
    assert protocol(multi_scale=True) == Protocol(scales=PUBLISHED_SCALES, flip=True)
    assert PUBLISHED_SCALES == (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    assert protocol(multi_scale=True, flip=False).flip is False
    assert protocol(scales=(2.0,)).flip is False and protocol(flip=True).flip is True
    assert protocol(scales=(1.0, 2.0)).flip is True
    with pytest.raises(UserError, match="--stride 200: leaves gaps"):
        protocol(trained, stride=200)


def test_chosen_by():
    best = {"step": 6, "measure": "val_miou", "score": 0.5, "split": "val", "every": 1}
    assert chosen_by({"step": 6, "best": best}) == "step 6, best val_miou: 50.00% on val"
    assert chosen_by({"step": 8, "best": best}) == chosen_by({"step": 8, "best": None}) == "step 8, the last"
    assert chosen_by({"epoch": 99}) == "not recorded, epoch 99"
    assert chosen_by({}) == "not recorded"


def test_released_checkpoint_needs_the_backbone_that_its_shapes_do_not_tell(tmp_path, capsys):
    """DeiT and ViT differ in pixel statistics alone: the wrong ones give other label maps."""
    torch.manual_seed(0)
    model = build_segmenter("deit_tiny_patch16_224", num_classes=4, image_size=64)
    released = tmp_path / "checkpoint.pth"
    torch.save({"model": model.state_dict(), "n_cls": 4, "epoch": 99}, released)
    write_image(
        tmp_path / "photo.png", np.random.default_rng(0).integers(0, 256, (70, 80, 3), dtype=np.uint8)
    )
    command = (MODULE, "--images", tmp_path / "photo.png", "--checkpoint", released, "--output-dir")
    sizes = ("--short-side", 64, "--window", 64)
    line = error_line(capsys, *command, tmp_path / "out", *sizes)
    assert "checkpoint.pth" in line and "--backbone" in line and "vit_tiny_patch16_224" in line
    assert not (tmp_path / "out").exists()
    labels = {}
    for backbone, statistics in (
        ("deit_tiny_patch16_224", "123.68 116.28 103.53 / 58.4 57.12 57.38"),
        ("vit_tiny_patch16_224", "127.5 127.5 127.5 / 127.5 127.5 127.5"),
    ):
        run_here(*command, tmp_path / backbone, *sizes, "--backbone", backbone)
        assert f"{backbone}, mean/std {statistics} | scales 1" in capsys.readouterr().out
        labels[backbone] = files(tmp_path / backbone)
    assert labels["deit_tiny_patch16_224"] != labels["vit_tiny_patch16_224"]


# ------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("--images", "--data-path")),
        (("--images", "PHOTOS", "--data-path", "DATA"), ("--images", "not both")),
        (("--images", "PHOTOS", "--split", "val"), ("--split", "leave it out")),
        (("--images", "PHOTOS/none"), ("none: no such file or folder",)),
        (("--images", "PHOTOS/empty"), ("empty: no picture in this folder",)),
        (("--images", "PHOTOS/twice"), ("a.png", "same id as a.jpg")),
        (("--data-path", "DATA", "--split", "test"), ("no list 'test'",)),
        (("--data-path", "DATA", "--window", 64, "--stride", 65), ("--stride 65", "gaps", "--window")),
        (("--data-path", "DATA", "--overlays", "some"), ("--overlays some", "or all")),
        (("--data-path", "DATA", "--multi-scale", "--scales", 1), ("--multi-scale", "one of the two")),
        (("--data-path", "DATA", "--amp", "float16"), ("--amp float16", "GPU")),
        (("--data-path", "DATA", "--backbone", "deit_tiny_patch16_224"), ("best.pth", "vit_micro_patch8_96")),
    ],
)
def test_options_that_do_not_fit(options, words, miniature, checkpoint, tmp_path, capsys):
    for name in ("a.png", "empty/text.txt", "twice/a.jpg", "twice/a.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_text("")
    places = {"PHOTOS": str(tmp_path / "photos"), "DATA": str(miniature)}
    for name, place in places.items():
        options = [o.replace(name, place) if isinstance(o, str) else o for o in options]
    out = tmp_path / "out"
    line = error_line(capsys, MODULE, *options, "--checkpoint", checkpoint, "--output-dir", out)
    for word in words:
        assert word in line
    assert not out.exists()


def test_checkpoint_of_other_classes(miniature, checkpoint, tmp_path, capsys):
    other = tmp_path / "other.pth"
    command = (MODULE, "--data-path", miniature, "--checkpoint", other, "--output-dir", tmp_path / "out")
    model, _ = load_segmenter(checkpoint)
    save(other, model, class_names=["disc", "square", "star"])
    line = error_line(capsys, *command)
    assert "other.pth" in line and "'star' in place of 'triangle'" in line
    save(other, build_segmenter("vit_micro_patch8_96", num_classes=6, image_size=64))
    line = error_line(capsys, *command)
    assert "other.pth" in line and "5 classes" in line and "has 3" in line
    line = error_line(capsys, *command[:3], "--checkpoint", tmp_path / "none.pth", *command[5:])
    assert "none.pth: neither a file nor a released name" in line
    assert not (tmp_path / "out").exists()


def test_values_that_are_not_finite(miniature, checkpoint, tmp_path, capsys):
    model, _ = load_segmenter(checkpoint)
    with torch.no_grad():
        model.decoder.proj_patch.fill_(float("nan"))
    broken = save(tmp_path / "broken.pth", model)
    options = ("--data-path", miniature, "--checkpoint", broken, "--output-dir", tmp_path / "out")
    line = error_line(capsys, MODULE, *options)
    assert val_ids(miniature)[0] in line and "not finite" in line
    assert not files(tmp_path / "out")


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_picture_stops_after_the_files_before_it(workers, miniature, checkpoint, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abcd":
        content = picture(miniature, "mini_000").read_bytes()
        (photos / f"{name}.jpg").write_bytes(content if name != "c" else content[: len(content) // 2])
    options = ("--images", photos, "--checkpoint", checkpoint, "--output-dir", tmp_path / "out")
    line = error_line(capsys, MODULE, *options, "--workers", workers)
    assert "c.jpg" in line and "truncated" in line
    assert sorted(files(tmp_path / "out")) == ["a.png", "b.png"]
    (photos / "c.jpg").write_bytes(content)
    run_here(MODULE, *options)
    assert sorted(files(tmp_path / "out")) == ["a.png", "b.png", "c.png", "d.png"]


def test_output_folder_that_holds_pictures_is_left_alone(miniature, checkpoint, tmp_path, capsys):
    """--overwrite deletes *.png of the output folder: never those of the user."""
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (20, 20)).save(photos / "a.png")
    (photos / "b.png").symlink_to(picture(miniature, "mini_004"))
    before = files(photos)
    options = ("--images", photos, "--checkpoint", checkpoint, "--output-dir", photos, "--overwrite")
    assert "choose another --output-dir" in error_line(capsys, MODULE, *options)
    options = ("--data-path", miniature, "--checkpoint", checkpoint, "--output-dir", miniature / "masks")
    assert "choose another --output-dir" in error_line(capsys, MODULE, *options, "--overwrite")
    assert files(photos) == before and len(list((miniature / "masks").glob("*.png"))) == 22


def test_mask_of_another_size_is_named_and_the_label_maps_stay(miniature, checkpoint, tmp_path, capsys):
    data = Path(shutil.copytree(miniature, tmp_path / "data"))
    first = val_ids(data)[0]
    Image.new("P", (50, 40)).save(data / "masks" / f"{first}.png")
    options = ("--data-path", data, "--checkpoint", checkpoint, "--output-dir", tmp_path / "out")
    line = error_line(capsys, MODULE, *options)
    assert f"masks/{first}.png" in line and "50x40" in line
    assert len(files(tmp_path / "out")) == 6 and not (tmp_path / "out" / "score.json").exists()


def test_masks_without_a_counted_pixel(miniature, checkpoint, tmp_path, capsys):
    data = Path(shutil.copytree(miniature, tmp_path / "data"))
    for path in (data / "masks").iterdir():
        size = Image.open(path).size
        Image.new("L", size, 255).save(path)
    options = ("--data-path", data, "--checkpoint", checkpoint, "--output-dir", tmp_path / "out")
    run_here(MODULE, *options)
    assert "no score, every pixel of the masks is 255 | val, 6 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model_args": {"backbone": "vit_micro_patch8_96", "num_classes": "four"}}, "model_args"),
        ({"model": {"encoder.cls_token": torch.zeros(())}}, "cls_token of another shape"),
    ],
)  # fmt: skip
def test_nonsense_in_a_checkpoint_is_one_line(content, words, miniature, tmp_path, capsys):
    path = tmp_path / "odd.pth"
    save_checkpoint(path, {"model": {"encoder.pos_embed": torch.zeros(1, 5, 8)}, **content})
    line = error_line(
        capsys, MODULE, "--data-path", miniature, "--checkpoint", path, "--output-dir", tmp_path / "out"
    )
    assert str(path) in line and words in line
