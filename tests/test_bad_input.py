"""Bad input of weaktr.train and generate_cam: one line with file and remedy, nothing half-written."""

import hashlib
import pathlib
import shutil

import pytest
import torch
from PIL import Image

import weaktr.cams
import weaktr.engine
from tests.commands import error_line, run_here
from tests.conftest import TRAIN_OPTIONS
from tests.spoil import BAD_WEIGHTS, add_pictures, append, cut, files, fill_disk, write_bad_weights
from wsss.cam_files import read_cams


@pytest.fixture
def data(miniature, tmp_path):
    """A copy of the miniature that a test may spoil."""
    return pathlib.Path(shutil.copytree(miniature, tmp_path / "data"))


def _first(data):
    return data / "images" / "mini_000.jpg"


# ---------------------------------------------------------------------------------- data, both commands

SPOILED = {  # name: (what is done to the data, words the line must hold)
    "truncated picture": (lambda d: cut(_first(d)), ("mini_000.jpg", "truncated")),
    "text named .jpg": (lambda d: _first(d).write_text("no picture"), ("mini_000.jpg", "not a picture")),
    "missing picture": (lambda d: _first(d).unlink(), ("train.txt, line 1", "mini_000", "no picture")),
    "id without label": (
        lambda d: (append(d / "train.txt", "new\n"), shutil.copy(_first(d), d / "images" / "new.jpg")),
        ("labels.csv", "'new'", "no labels"),
    ),
    "unknown class": (
        lambda d: append(d / "labels.csv", "other,hexagon\n"), ("labels.csv, line 24", "'hexagon'", "disc"),
    ),
    "duplicate id": (lambda d: append(d / "train.txt", "mini_000\n"), ("train.txt, line 17", "twice")),
    "path separator": (lambda d: append(d / "train.txt", "../x\n"), ("train.txt, line 17", "'../x'")),
    "no list": (lambda d: (d / "train.txt").unlink(), ("train.txt", "no list 'train'")),
    "mask of another size": (
        lambda d: Image.new("P", (50, 40)).save(d / "masks" / "mini_000.png"),
        ("masks/mini_000.png", "give a mask"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_data(case, data, trained, tmp_path, capsys):
    spoil, words = SPOILED[case]
    spoil(data)
    out = tmp_path / "train"
    train = error_line(
        capsys, "weaktr.train", "--data-path", data, "--output-dir", out, *TRAIN_OPTIONS, "--workers", 1
    )
    assert not any(name.endswith((".pth", ".tmp")) for name in (files(out) if out.exists() else ()))
    checkpoint = trained / "best.pth"
    out = tmp_path / "cams"
    generate = error_line(
        capsys, "weaktr.generate_cam", "--data-path", data, "--checkpoint", checkpoint, "--output-dir", out
    )
    if "picture" in case or ".jpg" in case:
        assert not (out / "mini_000.npz").exists()
    assert not any(name.endswith(".tmp") for name in (files(out) if out.exists() else ()))
    for word in words:
        assert word in train and word in generate


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (5, 5), (200, 7)])
def test_picture_smaller_than_a_patch(size, data, trained, tmp_path, capsys):
    Image.new("RGB", size).save(data / "images" / "small.png")
    (data / "tiny.txt").write_text("small\n")
    append(data / "labels.csv", "small,disc\n")
    line = error_line(
        capsys, "weaktr.generate_cam", "--data-path", data, "--checkpoint", trained / "best.pth",
        "--output-dir", tmp_path / "cams", "--split", "tiny", "--scales", 1.0,
    )  # fmt: skip
    assert "small.png" in line and f"{size[0]}x{size[1]}" in line and "enlarge" in line
    assert not (tmp_path / "cams" / "small.npz").exists()


def test_training_takes_pictures_of_any_shape(data, tmp_path):
    for name, size in (("line", (3000, 1)), ("dot", (1, 1)), ("wide", (300, 7))):
        Image.new("RGB", size, "red").save(data / "images" / f"{name}.png")
        append(data / "labels.csv", f"{name},disc\n")
    (data / "train.txt").write_text("line\ndot\nwide\nmini_001\n")
    run_here(
        "weaktr.train", "--data-path", data, "--output-dir", tmp_path / "train", *TRAIN_OPTIONS,
        "--batch-size", 4, "--select", "map",
    )  # fmt: skip
    assert torch.load(tmp_path / "train" / "last.pth", weights_only=True)["epoch"] == 2


def test_pictures_of_any_kind_and_empty_label_rows(data, trained, tmp_path, capsys):
    """Grey, RGBA, CMYK, palette, 16-bit: converted. Pictures without a class: trained on, no CAM file."""
    names = [*add_pictures(data / "images", Image.open(data / "images" / "mini_001.jpg")), "mini_001"]
    append(data / "labels.csv", "".join(f"{n},square\n" for n in names[:-1]) + "empty,\n")
    shutil.copy(_first(data), data / "images" / "empty.jpg")
    (data / "train.txt").write_bytes(("\ufeff" + "\r\n\r\n".join([*names, "empty"])).encode())
    run_here(
        "weaktr.train", "--data-path", data, "--output-dir", tmp_path / "train", *TRAIN_OPTIONS,
        "--batch-size", 7, "--select", "last",
    )  # fmt: skip
    run_here(
        "weaktr.generate_cam", "--data-path", data, "--checkpoint", trained / "best.pth",
        "--output-dir", tmp_path / "cams",
    )  # fmt: skip
    assert "1 pictures without a class skipped" in capsys.readouterr().out
    assert sorted(p.stem for p in (tmp_path / "cams").glob("*.npz")) == sorted(names)
    grey, deep = (read_cams(tmp_path / "cams" / f"{name}.npz").cams for name in ("grey", "deep"))
    assert (grey == deep).all()


def test_picture_that_memory_cannot_hold(miniature, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(weaktr.cams, "free_memory", lambda device: 3_000_000)
    options = ("--data-path", miniature, "--checkpoint", trained / "best.pth", "--output-dir", tmp_path)
    line = error_line(capsys, "weaktr.generate_cam", *options)
    assert "GiB" in line and "mini_000.jpg" in line
    for _ in range(4):  # a later picture may be larger, or hold more classes
        side = int(line.split("--max-side ")[1].split()[0])
        options = (*options, "--max-side", side, "--overwrite")
        try:
            run_here("weaktr.generate_cam", *options)
            break
        except SystemExit:
            line = capsys.readouterr().err
    assert len(list(tmp_path.glob("*.npz"))) == 16


# ------------------------------------------------------------------------------------------ checkpoints


def test_checkpoint_of_other_classes(miniature, trained, tmp_path, capsys):
    data = pathlib.Path(shutil.copytree(miniature, tmp_path / "data"))
    generate = (
        "weaktr.generate_cam", "--data-path", data, "--checkpoint", trained / "best.pth",
        "--output-dir", tmp_path / "cams",
    )  # fmt: skip
    append(data / "classes.txt", "star\n")
    line = error_line(capsys, *generate)
    assert "best.pth" in line and "3 classes" in line and "4" in line
    (data / "classes.txt").write_text("square\ndisc\ntriangle\n")
    line = error_line(capsys, *generate)
    assert "best.pth" in line and "'disc'" in line and "'square'" in line
    assert not (tmp_path / "cams").exists()


@pytest.mark.parametrize("option", ["--checkpoint", "--pretrained"])
@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights(kind, option, miniature, trained, tmp_path, capsys):
    path, canary = tmp_path / "weights.pth", tmp_path / "executed"
    write_bad_weights(kind, path, trained / "best.pth", canary)
    out = tmp_path / "out"
    if option == "--checkpoint":
        line = error_line(
            capsys, "weaktr.generate_cam", "--data-path", miniature, option, path, "--output-dir", out
        )
    else:
        line = error_line(
            capsys,
            "weaktr.train",
            "--data-path",
            miniature,
            "--output-dir",
            out,
            *TRAIN_OPTIONS,
            option,
            path,
        )
    assert "weights.pth" in line
    assert BAD_WEIGHTS[kind] in line
    assert not canary.exists()
    assert not out.exists() or not any(n.endswith((".pth", ".npz", ".tmp")) for n in files(out))


def test_truncated_last_checkpoint_is_not_written_over(miniature, trained, tmp_path, capsys):
    folder = pathlib.Path(shutil.copytree(trained, tmp_path / "train"))
    cut(folder / "last.pth")
    before = (folder / "last.pth").read_bytes()
    options = ("--data-path", miniature, "--output-dir", folder, *TRAIN_OPTIONS)
    line = error_line(capsys, "weaktr.train", *options)
    assert "last.pth" in line and "truncated" in line
    assert (folder / "last.pth").read_bytes() == before


# ---------------------------------------------------------------------------------------- output folders


def test_output_folder_of_a_different_run(miniature, trained, tmp_path, capsys):
    folder = pathlib.Path(shutil.copytree(trained, tmp_path / "train"))
    before = {p: p.read_bytes() for p in folder.glob("*.*")}
    options = ("--data-path", miniature, "--output-dir", folder, *TRAIN_OPTIONS, "--seed", 7)
    line = error_line(capsys, "weaktr.train", *options)
    assert str(folder) in line and "seed was 504, now 7" in line and "--overwrite" in line
    line = error_line(
        capsys, "weaktr.generate_cam", "--data-path", miniature, "--checkpoint", folder / "best.pth",
        "--output-dir", folder,
    )  # fmt: skip
    assert str(folder) in line and "weaktr.train" in line
    assert {p: p.read_bytes() for p in folder.glob("*.*")} == before
    (folder / "mine.txt").write_text("kept")
    run_here("weaktr.train", *options, "--overwrite")
    assert torch.load(folder / "last.pth", weights_only=True)["options"]["seed"] == 7
    assert (folder / "mine.txt").read_text() == "kept"


def test_output_folder_that_is_a_file_or_forbidden(miniature, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    for path in (tmp_path / "taken", tmp_path / "taken" / "below"):
        line = error_line(
            capsys, "weaktr.train", "--data-path", miniature, "--output-dir", path, *TRAIN_OPTIONS
        )
        assert "taken" in line


# ------------------------------------------------------------------------------- in the middle of a run


def test_disk_full_keeps_the_previous_checkpoint(miniature, tmp_path, capsys, monkeypatch):
    fill_disk(monkeypatch, ".last.pth.tmp", write=2)
    options = ("--data-path", miniature, "--output-dir", tmp_path, *TRAIN_OPTIONS)
    line = error_line(capsys, "weaktr.train", *options)
    assert "last.pth" in line and "disk full" in line
    assert torch.load(tmp_path / "last.pth", weights_only=True)["epoch"] == 1
    assert not list(tmp_path.glob(".*tmp"))
    run_here("weaktr.train", *options)
    assert torch.load(tmp_path / "last.pth", weights_only=True)["epoch"] == 2


def test_loss_that_is_not_finite(miniature, tmp_path, capsys, monkeypatch):
    loss, calls = weaktr.engine.weaktr_loss, []

    def diverging(logits, labels):
        calls.append(1)
        losses = loss(logits, labels)
        return {k: v * float("nan") for k, v in losses.items()} if len(calls) == 3 else losses

    monkeypatch.setattr(weaktr.engine, "weaktr_loss", diverging)
    options = ("--data-path", miniature, "--output-dir", tmp_path, *TRAIN_OPTIONS)
    line = error_line(capsys, "weaktr.train", *options)
    ids = [i for i in (miniature / "train.txt").read_text(encoding="utf8").split("\n") if i and i in line]
    assert "nan" in line and "step 2" in line and "--lr" in line and len(ids) == 8
    saved = torch.load(tmp_path / "last.pth", weights_only=True)
    assert saved["epoch"] == 1 and all(v.isfinite().all() for v in saved["model"].values())


@pytest.mark.parametrize("epochs", ["1", "3"])
def test_learning_rate_that_explodes_never_saves_broken_weights(epochs, miniature, tmp_path, capsys):
    options = ("--data-path", miniature, "--output-dir", tmp_path, *TRAIN_OPTIONS, "--lr", "1e38")
    line = error_line(capsys, "weaktr.train", *options, "--epochs", epochs)
    assert "--lr" in line
    for path in tmp_path.glob("*.pth"):
        assert all(v.isfinite().all() for v in torch.load(path, weights_only=True)["model"].values())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch-size", "17"), ("--batch-size 17", "16 pictures")),
        (("--image-size", "100"), ("--image-size 100", "8-pixel patch")),
        (("--backbone", "resnet50"), ("resnet50", "deit_tiny_patch16_224")),
        (("--val-split", "test"), ("no list 'test'",)),
        (("--pretrained", "hub"), ("hub", "no published weights")),
        (("--dataset", "voc12"), ("JPEGImages",)),
    ],
)
def test_options_that_do_not_fit(options, words, miniature, tmp_path, capsys):
    line = error_line(
        capsys,
        "weaktr.train",
        "--data-path",
        miniature,
        "--output-dir",
        tmp_path / "o",
        *TRAIN_OPTIONS,
        *options,
    )
    for word in words:
        assert word in line


def test_tests_leave_the_shared_training_alone(trained):
    assert hashlib.sha256((trained / "last.pth").read_bytes()).hexdigest()
    names = ["best.pth", "config.json", "dataset.json", "environment.json", "last.pth", "log.jsonl"]
    assert files(trained) == names
