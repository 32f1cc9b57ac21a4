"""What training leaves beside its checkpoints, and the command-level options of generation."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import weaktr.train as command
from tests.commands import run_here
from tests.conftest import TRAIN_OPTIONS
from weaktr.generate_cam import multi_scale_cams
from weaktr.model import build_weaktr, load_weaktr
from wsss.cam_files import read_cams
from wsss.config import parse
from wsss.datasets import load_dataset
from wsss.io import read_image


def events(folder):
    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    found.Reload()
    return found


def test_tensorboard_shows_every_epoch_also_after_a_repetition(miniature, trained, tmp_path):
    folder = tmp_path / "train"
    shutil.copytree(trained, folder)
    options = ("--data-path", miniature, "--output-dir", folder, *TRAIN_OPTIONS)
    run_here("weaktr.train", *options)  # finished already: nothing is lost
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = events(folder)
    names = {"loss": "epoch_loss/loss", "fine": "epoch_loss/fine", "cam_miou": "cam_miou"}
    names |= {n: n for n in ("sample_map_class", "class_map_coarse", "sample_map_fine")}
    for key, tag in names.items():
        values = found.Scalars(tag)
        assert [v.step for v in values] == [1, 3]  # two steps an epoch, written at its last
        assert [v.value for v in values] == pytest.approx([r[key] for r in records], rel=1e-6)
    assert [e.step for e in found.Images("head_weights")] == [1, 3]
    overlays = [tag for tag in found.Tags()["images"] if tag.startswith("cams/")]
    assert len(overlays) == 1  # --overlays 1
    assert found.Scalars("lr")


def test_dataset_facts_are_those_of_the_files(miniature, trained):
    found = json.loads((trained / "dataset.json").read_text())
    names = (miniature / "classes.txt").read_text().splitlines()
    assert (found["dataset"], found["root"], found["class_names"]) == ("folder", str(miniature), names)
    rows = (miniature / "labels.csv").read_text(encoding="utf8").splitlines()[1:]
    labels = {row.split(",")[0]: row.split(",")[1].split(";") for row in rows}
    assert list(found["lists"]) == ["train", "val"]
    for split, images in (("train", 16), ("val", 6)):
        of_list = [labels[i] for i in (miniature / f"{split}.txt").read_text(encoding="utf8").splitlines()]
        counts = [sum(len(classes) == n for classes in of_list) for n in range(3)]
        assert found["lists"][split] == {
            "images": images, "with_masks": True,
            "pictures_per_class": {name: sum(name in classes for classes in of_list) for name in names},
            "classes_per_picture": {str(n): count for n, count in enumerate(counts)},
        }  # fmt: skip
        assert sum(counts) == images and counts[1] and counts[2]
    seconds = json.loads((trained / "environment.json").read_text())["seconds"]
    assert 0 < seconds < 600


def test_augmentation_chooses_the_transform(miniature, tmp_path, monkeypatch):
    """DeiT's unless told; the geometric one gets the network's size and pixel statistics."""
    for name in ("classification", "geometric"):
        monkeypatch.setattr(f"weaktr.train.{name}_train_transform", lambda *given, name=name: (name, given))
    spec = load_dataset("folder", miniature)
    model = build_weaktr("vit_micro_patch8_96", num_classes=3, image_size=96)
    for words, name in (((), "classification"), (("--augmentation", "geometric"), "geometric")):
        words = ("--data-path", miniature, "--output-dir", tmp_path, *TRAIN_OPTIONS, *words)
        config, device = parse(command.Config, list(map(str, words))), torch.device("cpu")
        plan = command.make_plan(config, spec, device)
        train_set = command.make_loaders(config, spec, plan, model, device)[0]
        assert train_set.transform == (name, (96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def test_select_map_without_a_single_validation_label_falls_back_to_the_last(miniature, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(miniature, data)
    unlabelled = (data / "val.txt").read_text().splitlines()
    rows = (data / "labels.csv").read_text().splitlines()
    rows = [row.split(",")[0] + "," if row.split(",")[0] in unlabelled else row for row in rows]
    (data / "labels.csv").write_text("\n".join(rows))
    shutil.rmtree(data / "masks")
    options = ("--data-path", data, "--output-dir", tmp_path / "o", *TRAIN_OPTIONS, "--select", "map")
    run_here("weaktr.train", *options)
    best = torch.load(tmp_path / "o" / "best.pth", weights_only=True)["best"]
    assert best == {"epoch": 1, "score": 1, "measure": "epoch", "split": None, "every": 1}
    for line in (tmp_path / "o" / "log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def generated(data, trained, folder, *options):
    arguments = ("--data-path", data, "--checkpoint", trained / "best.pth", "--output-dir", folder)
    run_here("weaktr.generate_cam", *arguments, "--split", "val", *options)
    return {path.stem: read_cams(path) for path in folder.glob("*.npz")}


def test_predicted_labels_are_for_pictures_without_labels(miniature, trained, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(miniature, data)
    ids = (data / "val.txt").read_text().splitlines()
    rows = (data / "labels.csv").read_text().splitlines()
    given = {row.split(",")[0]: row.split(",")[1] for row in rows[1:]}
    unlisted, empty = ids[0], ids[1]
    rows = [f"{empty}," if row.startswith(f"{empty},") else row for row in rows]
    rows = [row for row in rows if not row.startswith(f"{unlisted},")]
    (data / "labels.csv").write_text("\n".join(rows))
    names = (data / "classes.txt").read_text().splitlines()
    everything = generated(data, trained, tmp_path / "all", "--predicted-labels", "0")
    for image_id in ids:
        expected = names if image_id in (unlisted, empty) else given[image_id].split(";")
        assert sorted(names[c] for c in everything[image_id].class_ids) == sorted(expected)
    nothing = generated(data, trained, tmp_path / "none", "--predicted-labels", "1")
    assert len(nothing[unlisted].class_ids) == len(nothing[empty].class_ids) == 0
    image = read_image(next((data / "images").glob(f"{unlisted}.*")))
    assert nothing[unlisted].cams.shape[1:] == image.shape[:2]


@pytest.mark.parametrize("attention", ["coarse", "cross"])
def test_variants_reach_the_files(attention, miniature, trained, tmp_path):
    found = generated(miniature, trained, tmp_path / attention, "--attention", attention, "--scales", "1.0")
    model, _ = load_weaktr(trained / "best.pth")
    image_id, cams = next(iter(found.items()))
    image = read_image(next((miniature / "images").glob(f"{image_id}.*")))
    labels = np.isin(np.arange(model.num_classes), cams.class_ids)
    expected = multi_scale_cams(model, image, labels, scales=(1.0,), attention=attention)
    assert np.abs(cams.cams.astype(np.float32) - expected).max() < 1e-3


def test_exif_turns_picture_and_map(miniature, trained, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(miniature, data)
    shutil.rmtree(data / "masks")
    image_id = (data / "val.txt").read_text().splitlines()[0]
    path = next((data / "images").glob(f"{image_id}.*"))
    image = Image.open(path).convert("RGB").crop((0, 0, 100, 90))
    path.unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(data / "images" / f"{image_id}.jpg", exif=exif)
    stored = generated(data, trained, tmp_path / "stored")[image_id]
    turned = generated(data, trained, tmp_path / "turned", "--exif")[image_id]
    assert stored.cams.shape[1:] == (90, 100)
    assert turned.cams.shape[1:] == (100, 90)
