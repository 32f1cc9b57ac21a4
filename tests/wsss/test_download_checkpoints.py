"""The command that fetches released files: from imitations of every host, and from files of a browser.

Checkpoints are written from tests/manifests, the published networks' names and shapes.
"""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands import ROOT, error_line, run_here
from tests.miniature import make
from tests.released_layouts import WRAPPERS, manifest, save
from wsss import download_checkpoints as command
from wsss.datasets import load_dataset
from wsss.download_checkpoints import GROUPS, expand, next_step, obtain, register
from wsss.errors import UserError
from wsss.fetch import settle
from wsss.io import read_json
from wsss.metrics import ConfusionMatrix
from wsss.released import RELEASED, read_records
from wsss.released_check import check_file
from wsss.run import sha256

MODULE = "wsss.download_checkpoints"
LAYOUTS = {
    "deit_small_patch16_224": "segmenter_deit_small_vit_small",
    "vit_small_patch16_384": "segmenter_deit_small_vit_small",
    "dinov2_small_patch16_224": "segmenter_dinov2_small",
    "eva02_small_patch16_224": "segmenter_eva02_small",
    "vitb": "getam_vitb",
    "deit": "getam_vitb",
    "deit_distilled": "getam_deit_distilled",
    "vitb_hybrid": "getam_vitb_hybrid",
}
CAM, SEG, MASKS = "weaktr_cam_voc12_deit_s", "weaktr_voc12_deit_s", "weaktr_cam_voc12_deit_s_masks"


def refused(*words):
    return pytest.raises(UserError, match="(?s)^(?!.*\n)" + "".join(f"(?=.*{re.escape(w)})" for w in words))


def empty_state(shapes) -> dict[str, torch.Tensor]:
    """Tensors of these shapes that take no room: names and shapes are what is looked at."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def write_released(path: Path, name: str, *, classes: int | None = None) -> Path:
    """A file with the layout of a released checkpoint."""
    row = RELEASED[name]
    layout = "weaktr_deit_small" if row.kind == "cam" else LAYOUTS[row.backbone]
    foreground = classes or {"voc12": 20, "coco14": 80 if row.kind == "getam" else 90}[row.data]
    wrapper = WRAPPERS["stage 1" if row.kind == "cam" else "stage 2"]
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(path, wrapper(empty_state(manifest(layout, foreground))))


@pytest.fixture(scope="module")
def cam_file(tmp_path_factory) -> Path:
    return write_released(tmp_path_factory.mktemp("browser") / "best (1).pth", CAM)


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("voc"), "voc12", train=6, val=2) / "VOCdevkit"


@pytest.fixture(scope="module")
def masks_archive(voc, tmp_path_factory) -> Path:
    """Masks of train_aug in a nested zip, grey: the true ones but for a stripe of background."""
    dataset = load_dataset("voc12", voc)
    path = tmp_path_factory.mktemp("browser") / "masks.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for image_id in dataset.image_ids("train_aug"):
            mask = np.array(Image.open(dataset.mask_path(image_id)))
            mask[(mask == 255) | (np.arange(mask.shape[1]) < 40)] = 0
            picture = path.with_suffix(".png")
            Image.fromarray(mask).save(picture)
            archive.write(picture, f"WeakTr/pseudo-mask/{image_id}.png")
    return path


# ---------------------------------------------------------------------------------------- what it fits


@pytest.mark.parametrize(
    "name", [n for n, row in RELEASED.items() if row.kind in ("cam", "segmenter", "getam")]
)
def test_every_released_layout_is_taken_under_its_name_alone(name, tmp_path):
    path, row = write_released(tmp_path / "x.pth", name), RELEASED[name]
    alike = {name for name in LAYOUTS if LAYOUTS[name] == LAYOUTS[row.backbone]}  # share every shape
    for other in RELEASED.values():
        if other.kind == row.kind and other.data == row.data and other.backbone in alike:
            check_file(other, path, path)
        elif other.kind not in ("masks", "imagenet"):
            with refused(str(path), other.address):
                check_file(other, path, path)


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        (CAM, SEG, ["a network of stage 1 of 20 classes", "not a segmenter of 21 classes"]),
        (SEG, CAM, ["a segmenter of 21 classes", "not a network of stage 1 of 20 classes"]),
        (CAM, "weaktr_cam_coco14_deit_s", ["of 20 classes", "of 90 classes"]),
        ("weaktr_coco14_dinov2_s", "weaktr_voc12_dinov2_s", ["91 classes", "21 classes"]),
        ("weaktr_voc12_eva02_s", "weaktr_voc12_dinov2_s", ["eva02_small", "dinov2_small"]),
        (SEG, "weaktr_voc12_eva02_s", ["deit_small_patch16_224 or ", "eva02_small"]),
        ("getam_voc12_distilled", "getam_voc12_vit", ["deit_distilled", "vitb"]),
        ("getam_voc12_hybrid", "getam_coco14_hybrid", ["20 classes", "80 classes"]),
        ("getam_voc12_vit", SEG, ["network of GETAM", "segmenter"]),
        (CAM, "vitb", ["deit_small_patch16_224", "weights of vitb"]),
        (SEG, "deit_small_patch16_224", ["does not fit deit_small_patch16_224"]),
    ],
)
def test_another_network_is_named(name, other, words, tmp_path):
    path, row = write_released(tmp_path / "x.pth", name), RELEASED[other]
    words = [w for w in words if (name, other) != (CAM, "vitb") or w == "weights of vitb"]
    with refused(str(path), *words, row.address):
        check_file(row, path, path)


def test_starting_weights_of_getam(tmp_path):
    """Their encoders' tensors, under timm's names."""
    for backbone in ("vitb", "deit", "deit_distilled", "vitb_hybrid"):
        shapes = manifest(LAYOUTS[backbone], 20)
        prefix = "pretrained.model."
        state = {k.removeprefix(prefix): v for k, v in shapes.items() if k.startswith(prefix)}
        path = save(tmp_path / f"{backbone}.pth", {"model": empty_state(state)})
        check_file(RELEASED[backbone], path, path)
        other = "vitb_hybrid" if backbone != "vitb_hybrid" else "deit_distilled"
        with refused(str(path), f"weights of {backbone}" if backbone in ("vitb",) else "weights of ", other):
            check_file(RELEASED[other], path, path)


def test_real_starting_weights(pretrained, tmp_path):
    name = "vit_tiny_patch16_224"
    given = pretrained / f"{name}.augreg_in21k_ft_in1k.safetensors"
    assert "registered" in register(RELEASED[name], tmp_path, given)
    assert (tmp_path / "imagenet" / f"{name}.safetensors").read_bytes() == given.read_bytes()
    with refused(str(given), "does not fit vit_small_patch16_224", "huggingface.co/timm/vit_small"):
        register(RELEASED["vit_small_patch16_224"], tmp_path, given)


# ------------------------------------------------------------------------------------------- fetching


@pytest.fixture
def hosts(monkeypatch, cam_file):
    """What the hosts deliver, by Drive's number, address or repository; an error is raised."""
    offers, asked = {RELEASED[CAM].drive_id: cam_file.read_bytes()}, []

    def deliver(key, path):
        asked.append(key)
        offer = offers.get(key, UserError(f"{path.name}: Google Drive refuses; open ADDRESS in a browser"))
        if isinstance(offer, Exception):
            raise offer
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name("part")
        part.write_bytes(offer)
        settle(part, path)

    monkeypatch.setattr(command, "download_drive", lambda key, path, *, remedy: deliver(key, path))
    monkeypatch.setattr(command, "download", lambda url, path, *, sha256: deliver(url, path))
    monkeypatch.setattr(command, "download_hub", lambda repo, name, path, *, remedy: deliver(repo, path))
    deliver.offers, deliver.asked = offers, asked
    return deliver


def test_a_first_download_records_the_hash_and_a_second_verifies(hosts, tmp_path, capsys):
    run_here(MODULE, "--name", CAM, "--output-dir", tmp_path)
    path, digest = tmp_path / f"{CAM}.pth", sha256(tmp_path / f"{CAM}.pth")
    text = capsys.readouterr().out
    assert f"{CAM}: fetched, {path}" in text and f"sha256 {digest[:12]}... recorded" in text
    assert f"next: WEAKTR_CHECKPOINTS={tmp_path} bash scripts/evaluate.sh {CAM} voc12 DATA" in text
    record = read_json(tmp_path / "sha256.json")[CAM]
    assert (record["sha256"], record["size"], record["file"]) == (digest, path.stat().st_size, path.name)
    assert RELEASED[CAM].drive_id in record["source"]
    run_here(MODULE, "--name", CAM, "--output-dir", tmp_path)
    assert f"is here, unchanged since {record['date']}" in capsys.readouterr().out
    assert len(hosts.asked) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sha256.json", f"{CAM}.pth"]


def test_a_changed_file_here_is_refused(hosts, tmp_path):
    obtain(RELEASED[CAM], tmp_path)
    path = tmp_path / f"{CAM}.pth"
    path.write_bytes(path.read_bytes() + b"x")
    with refused(str(path), "has changed", "delete it", f"entry {CAM}", "sha256.json"):
        obtain(RELEASED[CAM], tmp_path)
    path.unlink()
    assert "as recorded" in obtain(RELEASED[CAM], tmp_path)


def test_a_changed_file_there_is_refused_until_the_entry_is_deleted(hosts, tmp_path):
    row, folder = RELEASED[CAM], tmp_path
    obtain(row, folder)
    first = read_records(folder)[CAM]["sha256"]
    (folder / f"{CAM}.pth").unlink()
    hosts.offers[row.drive_id] = write_released(tmp_path / "other", CAM, classes=20).read_bytes() + b"later"
    with refused(row.address, first, f"delete the entry {CAM} of {folder / 'sha256.json'}"):
        obtain(row, folder)
    assert not (folder / f"{CAM}.pth").exists() and read_records(folder)[CAM]["sha256"] == first
    assert not list((folder / ".incoming").iterdir())
    (folder / "sha256.json").write_text("{}")
    assert "recorded" in obtain(row, folder)
    assert read_records(folder)[CAM]["sha256"] != first


def test_another_network_from_the_host_is_not_kept(hosts, tmp_path, cam_file):
    row = RELEASED[SEG]
    hosts.offers[row.drive_id] = cam_file.read_bytes()
    with refused(f"what {row.address} delivered: is a network of stage 1"):
        obtain(row, tmp_path)
    hosts.offers[row.drive_id] = b"<!DOCTYPE html><html>quota</html>"
    with refused("is a web page", row.address):
        obtain(row, tmp_path)
    hosts.offers[row.drive_id] = cam_file.read_bytes()[:1000]
    with refused("truncated or not a checkpoint"):
        obtain(row, tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_stopped_before_the_check_is_not_fetched_again(hosts, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(command, "check_file", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            obtain(RELEASED[CAM], tmp_path)
    assert not (tmp_path / f"{CAM}.pth").exists()
    assert "fetched" in obtain(RELEASED[CAM], tmp_path) and len(hosts.asked) == 1


def test_published_digits_are_checked(hosts, tmp_path):
    row = RELEASED["deit_tiny_patch16_224"]
    hosts.offers[row.url] = b"anything"
    with refused(row.url, "published is a1311bcf"):
        obtain(row, tmp_path)


def test_the_hub_is_asked_for_timms_repository(hosts, tmp_path, pretrained):
    row = RELEASED["vit_tiny_patch16_224"]
    given = pretrained / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    hosts.offers[f"timm/{row.hub_name}"] = given.read_bytes()
    assert "fetched" in obtain(row, tmp_path)
    assert hosts.asked == ["timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"]


def test_several_go_on_after_a_failure_and_tell_all_at_the_end(hosts, tmp_path, capsys):
    hosts.offers[RELEASED["getam_voc12_vit"].drive_id] = UserError(
        "getam_voc12_vit.pth: too many\n downloads"
    )
    line = error_line(capsys, MODULE, "--name", SEG, CAM, "getam_voc12_vit", "--output-dir", tmp_path)
    assert line.startswith("error: 2 of 3 could not be fetched")
    assert len(hosts.asked) == 3 and (tmp_path / f"{CAM}.pth").is_file()


def test_the_end_of_several_has_the_reasons(hosts, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run_here(MODULE, "--name", "voc12", "--output-dir", tmp_path)
    assert stop.value.code == 2
    text = capsys.readouterr().out
    assert "1 of 9 are here; failed:" in text and f"  {SEG}: {SEG}.pth: Google Drive refuses" in text
    assert text.count("Google Drive refuses") == 8 and len(hosts.asked) == 9


def test_groups():
    names = {group: [row.name for row in expand([group])] for group in GROUPS}
    sizes = {group: len(found) for group, found in names.items()}
    assert sizes == {
        "all": 15, "weaktr": 10, "getam": 5, "voc12": 9, "coco14": 6, "masks": 10, "imagenet": 20
    }  # fmt: skip
    assert set(names["all"]) == {*names["weaktr"], *names["getam"]} == {*names["voc12"], *names["coco14"]}
    assert [row.name for row in expand([SEG, "weaktr", SEG])].count(SEG) == 1
    with refused("nonsense", "list"):
        expand(["nonsense"])
    with refused("stands alone"):
        expand(["list", SEG])


def test_next_steps(monkeypatch, tmp_path):
    monkeypatch.setenv("WEAKTR_CHECKPOINTS", str(tmp_path))
    steps = {name: next_step(RELEASED[name], tmp_path) for name in (SEG, MASKS, "deit_small_patch16_224")}
    assert steps == {
        SEG: f"bash scripts/evaluate.sh {SEG} voc12 DATA",
        MASKS: f"bash scripts/stage2.sh voc12 DATA {tmp_path}/masks/{MASKS} OUT",
        "deit_small_patch16_224": "give it to a training: --pretrained "
        f"{tmp_path}/imagenet/deit_small_patch16_224.pth",
    }


def test_list(tmp_path, capsys):
    run_here(MODULE, "--output-dir", tmp_path)
    text = capsys.readouterr().out
    assert all(f"\n{name} " in text for name in RELEASED)
    assert "next: bash scripts/download_checkpoints.sh NAME" in text


# ---------------------------------------------------------------------------------------- registering


def test_a_file_of_a_browser_is_registered(cam_file, tmp_path, capsys):
    run_here(MODULE, "--name", CAM, "--from", cam_file, "--output-dir", tmp_path)
    path = tmp_path / f"{CAM}.pth"
    assert path.read_bytes() == cam_file.read_bytes() and "registered" in capsys.readouterr().out
    assert read_records(tmp_path)[CAM]["source"] == "best (1).pth"
    run_here(MODULE, "--name", CAM, "--from", cam_file, "--output-dir", tmp_path)
    assert "is here, unchanged" in capsys.readouterr().out
    run_here(MODULE, "--name", CAM, "--output-dir", tmp_path)
    assert "is here, unchanged" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sha256.json", f"{CAM}.pth"]


def test_a_file_on_another_disk_is_copied(cam_file, tmp_path, monkeypatch):
    def no_link(*arguments):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(command.os, "link", no_link)
    register(RELEASED[CAM], tmp_path, cam_file)
    path = tmp_path / f"{CAM}.pth"
    assert path.read_bytes() == cam_file.read_bytes() and path.stat().st_ino != cam_file.stat().st_ino


def test_another_file_than_the_one_here_is_refused(cam_file, tmp_path):
    register(RELEASED[CAM], tmp_path / "c", cam_file)
    other = tmp_path / "other.pth"
    other.write_bytes(cam_file.read_bytes() + b"x")
    with refused(f"{CAM}.pth", "is here already", str(other), f"delete it and the entry {CAM}"):
        register(RELEASED[CAM], tmp_path / "c", other)


def test_a_file_put_there_by_hand_is_checked_and_recorded(cam_file, tmp_path):
    path = tmp_path / f"{CAM}.pth"
    path.write_bytes(cam_file.read_bytes())
    assert "put there by hand" in register(RELEASED[CAM], tmp_path, path)
    assert "is here, unchanged" in obtain(RELEASED[CAM], tmp_path)
    assert read_records(tmp_path)[CAM]["sha256"] == sha256(cam_file)
    wrong = tmp_path / f"{SEG}.pth"
    wrong.write_bytes(cam_file.read_bytes())
    with refused(str(wrong), "is a network of stage 1"):
        obtain(RELEASED[SEG], tmp_path)
    assert SEG not in read_records(tmp_path) and wrong.exists()


def test_what_cannot_be_registered(cam_file, tmp_path, capsys):
    page = tmp_path / "page.pth"
    page.write_text("<!DOCTYPE html><html>Google Drive - Quota exceeded</html>")
    out = ("--output-dir", tmp_path / "c")
    for arguments, words in (
        (("--name", SEG, "--from", cam_file), ["best (1).pth: is a network of stage 1", "segmenter of 21"]),
        (("--name", SEG, "--from", page), ["page.pth: is a web page", "drive.google.com"]),
        (("--name", MASKS, "--from", page), ["page.pth: is a web page"]),
        (("--name", MASKS, "--from", cam_file), ["best (1).pth", "no mask named like a picture of voc12"]),
        (("--name", SEG, "--from", tmp_path / "none.pth"), ["none.pth: no such file"]),
        (("--name", SEG, "--from", tmp_path), ["no such file"]),
        (("--name", SEG, CAM, "--from", cam_file), ["is one file", "2 names"]),
    ):
        line = error_line(capsys, MODULE, *arguments, *out)
        assert all(word in line for word in words), line
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [page]


# ---------------------------------------------------------------------------------------------- masks


def test_masks_are_unpacked_and_verified(hosts, masks_archive, tmp_path):
    row, folder = RELEASED[MASKS], tmp_path / "masks" / MASKS
    hosts.offers[row.drive_id] = masks_archive.read_bytes()
    assert f"6 masks in {folder}" in obtain(row, tmp_path)
    record = read_records(tmp_path)[MASKS]
    assert record["files"] == 6 and record["sha256"] == sha256(masks_archive)
    assert len(list(folder.glob("*.png"))) == 6 and {p.name for p in tmp_path.iterdir()} == {
        "masks",
        "sha256.json",
    }
    assert "is here, unchanged" in obtain(row, tmp_path) and len(hosts.asked) == 1
    assert "is here, unchanged" in register(row, tmp_path, masks_archive)
    victim = next(folder.glob("*.png"))
    victim.unlink()
    with refused(str(folder), "has changed", MASKS):
        obtain(row, tmp_path)


def test_masks_that_a_browser_has_unpacked(masks_archive, tmp_path):
    with zipfile.ZipFile(masks_archive) as archive:
        archive.extractall(tmp_path / "Downloads")
    row = RELEASED[MASKS]
    assert "6 masks" in register(row, tmp_path / "a", tmp_path / "Downloads")
    register(row, tmp_path / "b", masks_archive)
    hashes = [read_records(tmp_path / name)[MASKS]["content_sha256"] for name in "ab"]
    assert hashes[0] == hashes[1] and "sha256" not in read_records(tmp_path / "a")[MASKS]


def test_masks_put_there_by_hand(masks_archive, tmp_path):
    row, folder = RELEASED[MASKS], tmp_path / "masks" / MASKS
    folder.mkdir(parents=True)
    with refused(str(folder), "holds no masks"):
        obtain(row, tmp_path)
    with zipfile.ZipFile(masks_archive) as archive:
        for name in archive.namelist():
            (folder / Path(name).name).write_bytes(archive.read(name))
    assert "put there by hand" in obtain(row, tmp_path)
    assert read_records(tmp_path)[MASKS]["files"] == 6


@pytest.fixture(scope="module")
def registered(masks_archive, tmp_path_factory) -> Path:
    """A folder of checkpoints into which the shell script has registered masks."""
    folder = tmp_path_factory.mktemp("checkpoints") / "with space"
    script = ("bash", ROOT / "scripts" / "download_checkpoints.sh")
    done = subprocess.run(
        [*script, MASKS, "--from", masks_archive],
        env={**os.environ, "WEAKTR_PYTHON": sys.executable, "WEAKTR_CHECKPOINTS": str(folder)},
        capture_output=True, text=True, check=False, cwd=folder.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6 masks in" in done.stdout and "next: bash scripts/stage2.sh voc12 DATA" in done.stdout
    return folder


def test_the_script_refuses_nonsense(tmp_path):
    script = ROOT / "scripts" / "download_checkpoints.sh"
    for arguments, words in (
        ((), "a name is needed"),
        (("--form", "x"), "unknown option --form"),
        ((SEG, "--from"), "--from wants a value"),
    ):
        done = subprocess.run(["bash", script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and words in done.stderr and "usage" in done.stderr
    done = subprocess.run(
        ["bash", script, "weaktr_voc12_deit", "--output-dir", tmp_path],
        env={**os.environ, "WEAKTR_PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "weaktr_voc12_deit_s" in done.stderr and done.stderr.count("\n") == 1


def test_registered_masks_are_scored(registered, voc, tmp_path):
    """Against a confusion matrix counted here."""
    folder = registered / "masks" / MASKS
    options = ("--dataset", "voc12", "--data-path", voc, "--split", "train", "--workers", "0")
    run_here("wsss.score", *options, "--pred-dir", folder, "--output-dir", tmp_path)
    dataset, total = load_dataset("voc12", voc), ConfusionMatrix(21)
    for image_id in dataset.image_ids("train"):
        truth = np.array(Image.open(dataset.mask_path(image_id)))
        pred = truth.copy()
        pred[(pred == 255) | (np.arange(pred.shape[1]) < 40)] = 0
        total.update(pred, truth)
    found = read_json(tmp_path / "score.json")
    assert found["mean_iou"] == pytest.approx(total.scores().mean_iou)
    assert 0.2 < found["mean_iou"] < 0.98 and found["images"] == 3


def test_registered_masks_train_stage_2(registered, voc, tmp_path):
    run_here(
        "segmentation.train", "--dataset", "voc12", "--data-path", voc, "--output-dir", tmp_path,
        "--mask-dir", registered / "masks" / MASKS, "--backbone", "vit_micro_patch8_96",
        "--pretrained", "none", "--short-side", "72", "--crop-size", "64", "--batch-size", "3",
        "--iterations", "2", "--workers", "0", "--overlays", "0",
    )  # fmt: skip
    assert (tmp_path / "last.pth").is_file()
    assert read_json(tmp_path / "config.json")["mask_dir"] == str(registered / "masks" / MASKS)
