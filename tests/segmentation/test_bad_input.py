"""Bad input of segmentation.train: one line, nothing half-written; odd input that is good."""

import errno
import json
import math
import pathlib
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import segmentation.memory
from segmentation.inference import Protocol
from segmentation.memory import needed_memory
from segmentation.segmenter import build_segmenter
from tests.commands import argv, error_line, run_here, run_process
from tests.conftest import SEGMENTER_OPTIONS
from tests.spoil import BAD_WEIGHTS, add_pictures, append, cut, files, fill_disk, write_bad_weights
from wsss.checkpoint import load_checkpoint, save_checkpoint
from wsss.datasets import load_dataset
from wsss.io import write_mask

MODULE = "segmentation.train"


@pytest.fixture
def data(miniature, tmp_path):
    """A copy of the miniature that a test may spoil."""
    return pathlib.Path(shutil.copytree(miniature, tmp_path / "data"))


def command(data, out, *options):
    return (MODULE, "--data-path", data, "--output-dir", out, *SEGMENTER_OPTIONS, *options)


def assert_nothing_trained(out):
    assert not out.exists() or set(files(out)) <= {"config.json", "environment.json"}


def losses(out):
    return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]


# -------------------------------------------------------------------------------- masks and pictures

SPOILED_MASKS = {  # name: (what is done to a mask, words the line must hold)
    "of another size": (lambda m: Image.new("P", (50, 40)).save(m), ("is 50x40", "make masks")),
    "class too many": (lambda m: write_mask(m, np.full((112, 111), 4)), ("value 4", "end at 3", "give")),
    "colour": (lambda m: Image.new("RGB", (111, 112)).save(m), ("is a RGB picture", "give masks")),
    "JPEG renamed": (
        lambda m: Image.new("L", (111, 112)).save(m, format="JPEG"), ("is a JPEG picture", "as PNG"),
    ),
    "truncated": (cut, ("damaged or truncated", "replace")),
    "text": (lambda m: m.write_text("no mask"), ("not a picture", "replace")),
}  # fmt: skip


@pytest.mark.parametrize("whose", ["masks", "pseudo"])
@pytest.mark.parametrize("case", SPOILED_MASKS)
def test_spoiled_mask(case, whose, data, tmp_path, capsys):
    spoil, words = SPOILED_MASKS[case]
    options = ()
    if whose == "pseudo":
        shutil.copytree(data / "masks", data / "pseudo")
        options = ("--mask-dir", data / "pseudo")
    assert Image.open(data / whose / "mini_005.png").size == (111, 112)
    spoil(data / whose / "mini_005.png")
    line = error_line(capsys, *command(data, tmp_path / "out", *options))
    for word in (f"{whose}/mini_005.png", *words):
        assert word in line
    assert_nothing_trained(tmp_path / "out")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut, ("mini_005.jpg", "truncated", "replace")),
        (lambda p: p.write_text("no picture"), ("mini_005.jpg", "not a picture", "replace")),
        (lambda p: p.unlink(), ("train.txt, line 6", "mini_005", "no picture")),
    ],
    ids=["truncated", "text", "missing"],
)
def test_spoiled_picture(spoil, words, data, tmp_path, capsys):
    spoil(data / "images" / "mini_005.jpg")
    line = error_line(capsys, *command(data, tmp_path / "out"))
    for word in words:
        assert word in line
    assert_nothing_trained(tmp_path / "out")


def test_masks_that_are_not_there(data, miniature_without_masks, tmp_path, capsys):
    out = tmp_path / "out"
    line = error_line(capsys, *command(miniature_without_masks, out))
    assert "masks/mini_000.png: no such mask" in line and "--mask-dir" in line
    (data / "masks" / "mini_005.png").unlink()
    line = error_line(capsys, *command(data, out))
    assert "masks/mini_005.png: no such mask" in line and "--mask-dir" in line
    line = error_line(capsys, *command(data, out, "--mask-dir", data / "masks"))
    assert "masks/mini_005.png: no such mask" in line and "every picture of train" in line
    for folder in (tmp_path / "none", data / "train.txt"):
        line = error_line(capsys, *command(data, out, "--mask-dir", folder))
        assert f"{folder}/mini_000.png: no such mask" in line and "--mask-dir" in line
    first = (data / "val.txt").read_text(encoding="utf8").split("\n")[0]
    (data / "masks" / f"{first}.png").unlink()
    own = ("--mask-dir", tmp_path / "data" / "masks", "--train-split", "val")
    line = error_line(capsys, *command(data, out, *own, "--val-split", "val"))
    assert f"masks/{first}.png: no such mask" in line
    pseudo = shutil.copytree(data / "masks", tmp_path / "pseudo")
    shutil.copy(pseudo / "mini_000.png", pseudo / "mini_005.png")
    line = error_line(capsys, *command(data, out, "--mask-dir", pseudo, "--val-split", "val"))
    assert f"masks/{first}.png: no such mask" in line and "--val-split" in line
    assert_nothing_trained(out)


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_masks_255_everywhere(split, data, tmp_path, capsys):
    for image_id in (data / f"{split}.txt").read_text(encoding="utf8").split("\n")[:-1]:
        path = data / "masks" / f"{image_id}.png"
        write_mask(path, np.full(np.array(Image.open(path)).shape, 255))
    line = error_line(capsys, *command(data, tmp_path / "out"))
    assert f"{data / 'masks'}: every pixel" in line and "is 255" in line and "give masks" in line
    assert_nothing_trained(tmp_path / "out")


def test_one_class_only_and_nothing_labelled(data, tmp_path, capsys):
    """No crop can hold two classes; a picture without labels gives no gradient and no nan."""
    for image_id, value in (("mini_000", 2), ("mini_001", 2), ("mini_002", 0), ("mini_005", 255)):
        path = data / "masks" / f"{image_id}.png"
        write_mask(path, np.full(np.array(Image.open(path)).shape, value))
    (data / "few.txt").write_text("mini_000\nmini_001\nmini_002\nmini_005\n")
    run_here(*command(data, tmp_path / "out", "--train-split", "few", "--batch-size", 1, "--save-every", 1))
    found = losses(tmp_path / "out")
    assert len(found) == 8 and np.isfinite(found).all() and found.count(0.0) == 2
    printed = capsys.readouterr().out
    assert "1 of 4 masks" in printed and "255 everywhere" in printed and "background only" in printed


# ----------------------------------------------------------------------------- odd input that is good


def test_pictures_of_any_kind_and_size(data, tmp_path):
    """Trained on and evaluated; the checkpoint is written, and every weight is finite."""
    original = Image.open(data / "images" / "mini_001.jpg")
    names = [*add_pictures(data / "images", original), "upright"]
    exif = Image.Exif()
    exif[0x0112] = 6
    original.save(data / "images" / "upright.jpg", exif=exif)
    for name in names:
        shutil.copy(data / "masks" / "mini_001.png", data / "masks" / f"{name}.png")
    sizes = {"column": (1, 90), "row": (90, 1), "dot": (1, 1), "small": (40, 30), "strip": (400, 20)}
    for name, size in sizes.items():
        Image.new("RGB", size, "red").save(data / "images" / f"{name}.png")
        Image.new("L", size, 1).save(data / "masks" / f"{name}.png")
    names += sizes
    (data / "odd.txt").write_text("".join(f"{name}\n" for name in names))
    options = ("--train-split", "odd", "--val-split", "odd", "--iterations", 6)
    run_here(*command(data, tmp_path / "out", *options))
    assert np.isfinite(losses(tmp_path / "out")).all()
    content = load_checkpoint(tmp_path / "out" / "last.pth")
    assert content["step"] == 6 and 0 < content["best"]["score"] < 1
    assert all(v.isfinite().all() for v in content["model"].values())


def test_exif_rotation(data, tmp_path, capsys):
    """By default masks fit the pixels as stored, with --exif the upright picture."""
    path = data / "images" / "mini_005.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    few = ("--train-split", "few", "--iterations", 1)
    (data / "few.txt").write_text("mini_005\n")
    run_here(*command(data, tmp_path / "stored", *few))
    line = error_line(capsys, *command(data, tmp_path / "out", *few, "--exif"))
    assert "masks/mini_005.png: is 111x112" in line and "is 112x111" in line and "--exif" in line
    mask = data / "masks" / "mini_005.png"
    write_mask(mask, np.rot90(np.array(Image.open(mask)), 3))
    run_here(*command(data, tmp_path / "upright", *few, "--exif"))
    line = error_line(capsys, *command(data, tmp_path / "out", *few))
    assert "masks/mini_005.png: is 112x111" in line and "is 111x112" in line
    assert_nothing_trained(tmp_path / "out")


def test_batch_larger_than_the_list(miniature, tmp_path):
    run_here(*command(miniature, tmp_path, "--batch-size", 64, "--iterations", 2, "--eval-every", 2))
    assert load_checkpoint(tmp_path / "last.pth")["best"]["epoch"] == 2


def test_picture_that_memory_cannot_hold_in_evaluation(miniature, tmp_path, capsys, monkeypatch):
    """The largest; said before anything is trained, with a --max-side that helps."""
    spec = load_dataset("folder", miniature)
    sizes = {i: Image.open(spec.image_path(i)).size[::-1] for i in spec.image_ids("val")}
    largest = max(sizes, key=lambda i: math.prod(sizes[i]))
    network = build_segmenter("vit_micro_patch8_96", num_classes=4, image_size=64)
    fixed, maps = needed_memory(network, sizes[largest], Protocol(72, window=64, stride=42, window_batch=1))
    monkeypatch.setattr(segmentation.memory, "free_memory", lambda device: (fixed + 0.95 * maps) / 0.8)
    line = error_line(capsys, *command(miniature, tmp_path))
    assert str(spec.image_path(largest)) in line and "GiB" in line
    assert_nothing_trained(tmp_path)
    side = line.split("--max-side ")[1].split()[0]
    run_here(*command(miniature, tmp_path, "--iterations", 1, "--max-side", side))
    assert load_checkpoint(tmp_path / "last.pth")["step"] == 1


# ------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_starting_weights(kind, miniature, segmenter, tmp_path, capsys):
    path, canary, out = tmp_path / "weights.pth", tmp_path / "executed", tmp_path / "out"
    write_bad_weights(kind, path, segmenter / "best.pth", canary)
    line = error_line(capsys, *command(miniature, out, "--pretrained", path))
    assert "weights.pth" in line and BAD_WEIGHTS[kind] in line
    assert not canary.exists()
    assert_nothing_trained(out)


@pytest.fixture
def finished(segmenter, tmp_path):
    """A copy of the finished training that a test may spoil."""
    return pathlib.Path(shutil.copytree(segmenter, tmp_path / "train"))


@pytest.mark.parametrize("kind", [kind for kind in BAD_WEIGHTS if kind != "missing"])
def test_bad_last_checkpoint_is_left_as_it_is(kind, miniature, finished, tmp_path, capsys):
    write_bad_weights(kind, finished / "last.pth", finished / "best.pth", tmp_path / "executed")
    before = {p.name: p.read_bytes() for p in finished.glob("*.pth")}
    line = error_line(capsys, *command(miniature, finished))
    assert "last.pth" in line and BAD_WEIGHTS[kind] in line
    assert not (tmp_path / "executed").exists()
    assert {p.name: p.read_bytes() for p in finished.glob("*.pth")} == before


def test_last_checkpoint_of_another_network(miniature, finished, capsys):
    path = finished / "last.pth"
    content = load_checkpoint(path)
    for name, value in (("backbone", "deit_tiny_patch16_224"), ("image_size", 96)):  # shapes may agree
        save_checkpoint(path, content | {"model_args": content["model_args"] | {name: value}})
        line = error_line(capsys, *command(miniature, finished))
        assert "last.pth" in line and name in line and str(value) in line and "--output-dir" in line
    shutil.copy(finished / "best.pth", path)
    line = error_line(capsys, *command(miniature, finished))
    assert "last.pth" in line and "optimizer is missing" in line


def test_other_masks_or_classes_since_the_last_start(data, tmp_path, capsys):
    out = tmp_path / "out"
    run_here(*command(data, out, "--iterations", 1))
    before = (out / "last.pth").read_bytes()
    mask = data / "masks" / "mini_000.png"
    good = mask.read_bytes()
    write_mask(mask, np.zeros_like(np.array(Image.open(mask))))
    line = error_line(capsys, *command(data, out, "--iterations", 1))
    assert str(out) in line and "masks was" in line and "--overwrite" in line
    mask.write_bytes(good)
    append(data / "classes.txt", "star\n")
    line = error_line(capsys, *command(data, out, "--iterations", 1))
    assert "last.pth" in line and "3 classes" in line and "has 4" in line
    (data / "classes.txt").write_text("square\ndisc\ntriangle\n")
    line = error_line(capsys, *command(data, out, "--iterations", 1))
    assert "last.pth" in line and "'disc'" in line and "'square'" in line
    assert (out / "last.pth").read_bytes() == before


# ---------------------------------------------------------------------------- options, output folders


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--stride", 65), ("--stride 65", "64 pixels", "choose less")),
        (("--window", 40, "--stride", 41), ("--stride 41", "40 pixels")),
        (("--backbone", "resnet50"), ("resnet50", "deit_tiny_patch16_224")),
        (("--train-split", "test"), ("no list 'test'",)),
        (("--val-split", "test"), ("no list 'test'",)),
        (("--pretrained", "hub"), ("hub", "no published weights")),
        (("--dataset", "voc12"), ("JPEGImages",)),
        (("--data-path", "nowhere"), ("nowhere", "no such folder")),
        (("--amp", "float16", "--device", "cpu"), ("--amp float16", "bfloat16 or off")),
        (("--batch-size", 0), ("--batch-size", "at least 1")),
        (("--iterations", 0), ("--iterations", "at least 1")),
        (("--lr", -1), ("--lr", "above 0")),
        (("--lr", "nan"), ("--lr", "above 0")),
        (("--momentum", 1.5), ("--momentum", "at most 1")),
        (("--drop-path", 1), ("--drop-path", "at most 0.99")),
        (("--clip-start", 0), ("--clip-start", "above 0")),
        (("--clip-scope", "node"), ("--clip-scope", "process")),
        (("--crop-size", "big"), ("--crop-size", "big")),
        (("--gradient-clip",), ("--gradient-clip",)),
    ],
)
def test_options_that_do_not_fit(options, words, miniature, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_here(*command(miniature, tmp_path / "out", *options))
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and len(re.findall("error: ", printed)) == 1
    for word in words:
        assert word in printed.split("error: ")[1]
    assert_nothing_trained(tmp_path / "out")


def test_output_folder_of_a_different_run(miniature, finished, capsys):
    before = {p: p.read_bytes() for p in finished.glob("*.*")}
    line = error_line(capsys, *command(miniature, finished, "--lr", 0.06))
    assert str(finished) in line and "lr was 0.05, now 0.06" in line and "--overwrite" in line
    line = error_line(capsys, *command(miniature, finished, "--iterations", 9))
    assert "steps was 8, now 9" in line
    stage1 = error_line(capsys, "weaktr.train", "--data-path", miniature, "--output-dir", finished)
    assert str(finished) in stage1 and "segmentation.train" in stage1
    assert {p: p.read_bytes() for p in finished.glob("*.*")} == before
    (finished / "mine.txt").write_text("kept")
    run_here(*command(miniature, finished, "--iterations", 2, "--overwrite"))
    assert load_checkpoint(finished / "last.pth")["step"] == 2
    assert (finished / "mine.txt").read_text() == "kept"


def test_output_folder_that_cannot_be_written(miniature, tmp_path, capsys, monkeypatch):
    (tmp_path / "taken").write_text("")
    for path in (tmp_path / "taken", tmp_path / "taken" / "below"):
        assert str(tmp_path / "taken") in error_line(capsys, *command(miniature, path))
    mkdir = pathlib.Path.mkdir

    def read_only(self, *arguments, **options):  # root may write everywhere
        if self.name == "sealed":
            raise OSError(errno.EROFS, "Read-only file system", str(self))
        return mkdir(self, *arguments, **options)

    monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
    line = error_line(capsys, *command(miniature, tmp_path / "sealed"))
    assert f"{tmp_path / 'sealed'}: Read-only file system; choose another path" in line


@pytest.mark.parametrize(("name", "write", "step"), [("last.pth", 2, 3), ("best.pth", 2, 6)])
def test_disk_full_keeps_the_previous_checkpoint(
    name, write, step, miniature, segmenter, tmp_path, capsys, monkeypatch
):
    """last.pth is saved after steps 3, 4, 6, 8; best.pth after 4 and, where better, after 8."""
    best = load_checkpoint(segmenter / "best.pth")["best"]
    if name == "best.pth" and best["step"] == 4:
        write, step = 1, 3
    fill_disk(monkeypatch, f".{name}.tmp", write=write)
    line = error_line(capsys, *command(miniature, tmp_path))
    assert name in line and "disk full" in line and "run the same command again" in line
    assert load_checkpoint(tmp_path / "last.pth")["step"] == step
    assert not list(tmp_path.glob(".*tmp"))
    run_here(*command(miniature, tmp_path))
    for name in ("last.pth", "best.pth"):
        ours, theirs = (load_checkpoint(folder / name) for folder in (tmp_path, segmenter))
        assert ours["best"] == theirs["best"] and ours["step"] == theirs["step"]
        assert all(torch.equal(ours["model"][k], v) for k, v in theirs["model"].items())


# ------------------------------------------------------------------------------------ two processes


@pytest.mark.parametrize(
    ("options", "words"),
    [((), ("mini_005.png", "50x40")), (("--stride", 65), ("--stride 65", "64 pixels"))],
    ids=["found by the first", "found by both"],
)
def test_two_processes_end_with_one_line(options, words, data, tmp_path):
    """What one process finds or both do: said once, no traceback of theirs, nobody waits for ever."""
    if not options:
        Image.new("P", (50, 40)).save(data / "masks" / "mini_005.png")
    done = run_process(*argv(*command(data, tmp_path / "out", *options), processes=2))
    errors = [line for line in done.stderr.split("\n") if line.startswith("error:")]
    assert done.returncode != 0 and len(errors) == 1, done.stderr
    for word in words:
        assert word in errors[0]
    assert "[rank" not in done.stderr  # torchrun puts it before each line of a process's traceback
    assert_nothing_trained(tmp_path / "out")
