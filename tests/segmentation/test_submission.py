"""The archive for PASCAL VOC's server: layout, palette, equal bytes, continuing, refusals."""

import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import segmentation.label_maps
from segmentation.segmenter import build_segmenter
from tests.commands import error_line, run_here
from tests.miniature import draw, make
from wsss.io import VOC_PALETTE

MODULE = "segmentation.predict"
IDS = ("2008_000001", "2008_000004", "2008_000002")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """VOC with a test list whose pictures have neither mask nor annotation."""
    root = make(tmp_path_factory.mktemp("voc"), "voc12", train=2, val=2)
    voc = root / "VOCdevkit" / "VOC2012"
    for number, image_id in enumerate(IDS):
        Image.fromarray(draw(50 + number)[0]).save(voc / "JPEGImages" / f"{image_id}.jpg")
    (voc / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(IDS) + "\n")
    return root


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("network") / "last.pth"
    arguments = {"backbone": "vit_micro_patch8_96", "num_classes": 21, "image_size": 64}
    preprocessing = {"short_side": 72, "window": 64, "stride": 48}
    state = build_segmenter(**arguments).state_dict()
    torch.save({"model": state, "model_args": arguments, "preprocessing": preprocessing}, path)
    return path


def command(data, checkpoint, out):
    return (
        MODULE, "--dataset", "voc12", "--data-path", data, "--checkpoint", checkpoint, "--output-dir", out,
        "--workers", 0, "--submission",
    )  # fmt: skip


def test_archive_of_the_test_list(data, checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    run_here(*command(data, checkpoint, out), "--split", "test")
    printed = capsys.readouterr().out
    archive = out / "comp6_test_cls.tar.gz"
    assert f"packed 3 label maps for the server: {archive}" in printed
    assert "no score, not every picture has a mask" in printed and "upload the archive" in printed
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [
            f"results/VOC2012/Segmentation/comp6_test_cls/{i}.png" for i in sorted(IDS)
        ]
        assert {(m.mode, m.mtime, m.uid, m.gid, m.uname) for m in members} == {(0o644, 0, 0, 0, "")}
        tar.extractall(tmp_path / "unpacked", filter="data")
    seen = set()
    for image_id in IDS:
        name = f"results/VOC2012/Segmentation/comp6_test_cls/{image_id}.png"
        content = (tmp_path / "unpacked" / name).read_bytes()
        assert content == (out / name).read_bytes() == (out / f"{image_id}.png").read_bytes()
        image = Image.open(out / name)
        assert image.mode == "P" and bytes(image.getpalette()) == VOC_PALETTE
        assert image.size == Image.open(data / f"VOCdevkit/VOC2012/JPEGImages/{image_id}.jpg").size
        seen |= set(np.unique(np.array(image)))
    assert len(seen) > 1 and max(seen) <= 20


def test_equal_bytes_and_continuing(data, checkpoint, tmp_path, monkeypatch):
    """Another run gives the same archive; one that has its label maps packs them without the network."""
    archives = []
    for name in ("a", "b"):
        run_here(*command(data, checkpoint, tmp_path / name), "--split", "test")
        archives.append((tmp_path / name / "comp6_test_cls.tar.gz").read_bytes())
    assert archives[0] == archives[1]
    out = tmp_path / "plain"
    run_here(*command(data, checkpoint, out)[:-1], "--split", "test")
    assert not (out / "results").exists()
    monkeypatch.setattr(segmentation.label_maps, "predict_in_memory", None)
    run_here(*command(data, checkpoint, out), "--split", "test")
    assert (out / "comp6_test_cls.tar.gz").read_bytes() == archives[0]
    folder = out / "results/VOC2012/Segmentation/comp6_test_cls"
    (folder / f"{IDS[0]}.png").write_bytes(b"cut")
    (folder / f"{IDS[1]}.png").unlink()
    (out / "comp6_test_cls.tar.gz").unlink()
    run_here(*command(data, checkpoint, out), "--split", "test")
    assert (out / "comp6_test_cls.tar.gz").read_bytes() == archives[0]
    assert not list(out.rglob(".*.tmp"))


def test_archive_of_val_and_its_score(data, checkpoint, tmp_path, capsys):
    run_here(*command(data, checkpoint, tmp_path))
    assert (tmp_path / "comp6_val_cls.tar.gz").is_file() and (tmp_path / "score.json").is_file()
    assert "--submission" in capsys.readouterr().out.splitlines()[-1]  # the published test next
    run_here(*command(data, checkpoint, tmp_path), "--scales", 1.5, "--overwrite")
    assert len(list((tmp_path / "results").rglob("*.png"))) == 2


def test_refused_elsewhere(data, checkpoint, miniature, tmp_path, capsys):
    common = (MODULE, "--checkpoint", checkpoint, "--output-dir", tmp_path / "out", "--submission")
    for options in (("--data-path", miniature), ("--images", miniature / "images")):
        line = error_line(capsys, *common, *options)
        assert "--submission: the server scores PASCAL VOC 2012 alone; give --dataset voc12" in line
    line = error_line(capsys, *common, "--dataset", "voc12", "--data-path", data, "--split", "train_aug")
    assert "train_aug is no official list; give --split test" in line
    assert not (tmp_path / "out").exists()
