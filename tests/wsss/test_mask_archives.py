"""Mask archives: whatever lies inside becomes <id>.png in one folder, or nothing does."""

import io
import os
import re
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from wsss.errors import UserError
from wsss.io import read_mask
from wsss.mask_archives import content_hash, unpack_masks

MASK = np.array([[0, 1, 20], [255, 5, 0]], np.uint8)
VOC = {"data": "voc12", "num_classes": 21}


def png(mask=MASK, *, palette=False, mode=None) -> bytes:
    image = Image.fromarray(mask)
    if palette:
        image.putpalette(list(range(256)) * 3)
    if mode:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def as_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def as_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def as_folder(path, members):
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


WRITERS = {
    "zip": as_zip,
    "tar": as_tar,
    "tgz": lambda path, members: as_tar(path, members, "w:gz"),
    "xz": lambda path, members: as_tar(path, members, "w:xz"),
    "folder": as_folder,
}
MEMBERS = {
    "results/masks/2007_000032.png": png(),
    "results/masks/2007_000039.png": png(palette=True),
    "results/other/2007_000063.PNG": png(MASK[:, :2]),
    "results/readme.txt": b"words",
    "results/palette.png": png(),
    "__MACOSX/results/masks/._2007_000032.png": b"rubbish",
    "results/masks/.2007_000061.png": b"rubbish",
}


def refused(*words):
    return pytest.raises(UserError, match="(?s)^(?!.*\n)" + "".join(f"(?=.*{re.escape(w)})" for w in words))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("workers", [0, 2])
def test_nested_grey_and_palette_masks(tmp_path, kind, workers):
    """The name of the archive tells nothing: browsers and people rename."""
    archive, folder = WRITERS[kind](tmp_path / "download", MEMBERS), tmp_path / "masks" / "NAME"
    unpacked = unpack_masks(archive, folder, **VOC, workers=workers)
    assert sorted(p.name for p in folder.iterdir()) == [
        "2007_000032.png",
        "2007_000039.png",
        "2007_000063.png",
    ]
    assert unpacked == (3, content_hash(folder))
    for name, mask in (("032", MASK), ("039", MASK), ("063", MASK[:, :2])):
        assert np.array_equal(read_mask(folder / f"2007_000{name}.png"), mask)
    assert [p.name for p in folder.parent.iterdir()] == ["NAME"]


def test_the_hash_is_of_names_and_contents_not_of_the_archive(tmp_path):
    hashes = [
        unpack_masks(writer(tmp_path / kind, MEMBERS), tmp_path / "masks" / kind, **VOC).content_sha256
        for kind, writer in WRITERS.items()
    ]
    assert len(set(hashes)) == 1
    folder = tmp_path / "masks" / "zip"
    (folder / "2007_000032.png").write_bytes(png(MASK[::-1]))
    assert content_hash(folder) != hashes[0]
    (folder / "2007_000032.png").write_bytes(MEMBERS["results/masks/2007_000032.png"])
    assert content_hash(folder) == hashes[0]
    (folder / "2007_000032.png").rename(folder / "2007_000033.png")
    assert content_hash(folder) != hashes[0]


def test_cocos_prefix_is_removed(tmp_path):
    members = {"a/COCO_train2014_000000000009.png": png(), "a/000000000025.png": png(MASK + 60)}
    archive = as_zip(tmp_path / "a.zip", members)
    with refused("a.zip", "value 80", "20"):
        unpack_masks(archive, tmp_path / "out", data="coco14", num_classes=21)
    unpack_masks(archive, tmp_path / "out", data="coco14", num_classes=91)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000000009.png", "000000000025.png"]
    with refused("a.zip", "no mask named like a picture of voc12", "COCO_train2014_000000000009.png"):
        unpack_masks(archive, tmp_path / "voc", **VOC)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a/2007_000032.png": png(), "b/2007_000032.png": png()}, ["two masks of 2007_000032", "a/", "b/"]),
        ({"../2007_000032.png": png()}, ["../2007_000032.png", "leads out"]),
        ({"a/../../2007_000032.png": png()}, ["leads out"]),
        ({"/etc/2007_000032.png": png()}, ["leads out"]),
        ({"..\\2007_000032.png": png()}, ["leads out"]),
        ({"C:/2007_000032.png": png()}, ["leads out"]),
        ({"2007_000032.png": png(MASK + 20)}, ["2007_000032.png holds the value 40", "end at 20"]),
        ({"2007_000032.png": png(mode="RGB")}, ["2007_000032.png: is a RGB picture"]),
        ({"2007_000032.png": png()[:40]}, ["2007_000032.png"]),
        ({"2007_000032.png": b""}, ["2007_000032.png"]),
        ({"2007_000032.npz": b"x", "readme.txt": b"x"}, ["no mask named like"]),
        ({}, ["no mask named like"]),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_unfit_archives_leave_nothing(tmp_path, members, words, kind):
    archive, folder = WRITERS[kind](tmp_path / "given", members), tmp_path / "masks" / "NAME"
    with refused(str(archive), *words):
        unpack_masks(archive, folder, **VOC)
    assert list(folder.parent.iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["given", "masks"]


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("2007_000032.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("2007_000032.png")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    for name in ("a.tar", "a.zip"):
        with refused(name, "2007_000032.png is a link"):
            unpack_masks(tmp_path / name, tmp_path / "out", **VOC)


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz", "xz"])
def test_truncated_and_damaged_archives(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 21, (60, 60), np.uint8)
    members = {f"2007_00003{i}.png": png(noise) for i in range(9)}
    whole = WRITERS[kind](tmp_path / "whole", members).read_bytes()
    given = tmp_path / "given"
    half, flipped = len(whole) // 2, bytearray(whole)
    flipped[half if kind != "tar" else 5 * 512] ^= 255  # within a picture; padding does not matter
    cuts = range(512, 9 * 512, 512) if kind == "tar" else (100, half, len(whole) - 1000)
    for data in (*(whole[:cut] for cut in cuts), flipped):
        given.write_bytes(data)
        with refused(str(given)):
            unpack_masks(given, tmp_path / "masks" / "NAME", **VOC)
        assert list((tmp_path / "masks").iterdir()) == []
    given.write_bytes(os.urandom(2000))
    with refused("neither a zip nor a tar archive"):
        unpack_masks(given, tmp_path / "masks" / "NAME", **VOC)


def test_what_a_killed_run_left_is_of_no_consequence(tmp_path):
    stale = tmp_path / "masks" / ".NAME.incoming"
    stale.mkdir(parents=True)
    (stale / "2007_009999.png").write_bytes(b"cut")
    unpacked = unpack_masks(as_zip(tmp_path / "a.zip", MEMBERS), tmp_path / "masks" / "NAME", **VOC)
    assert unpacked.files == 3 and [p.name for p in (tmp_path / "masks").iterdir()] == ["NAME"]
