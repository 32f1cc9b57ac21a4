"""The report: numbers and pictures of a run are on the page, and nothing else is needed to see them."""

import base64
import html
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import error_line, run_here
from weaktr.search_threshold import curve_record
from weaktr.thresholds import ThresholdAccumulator
from wsss.datasets import load_dataset
from wsss.facts import write_dataset_facts
from wsss.io import VOC_PALETTE, write_json
from wsss.metrics import ConfusionMatrix
from wsss.panels import write_panel
from wsss.report import render
from wsss.reporting.panels import BUDGET, encode, shares
from wsss.reporting.read import read_run
from wsss.score import write_score

NAMES = ("Kätzchen <b>", 'dog & "co"')
IDS = ("a<i>1", "b&ü")
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Checks that tags are balanced; collects addresses, pictures and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.addresses, self.pictures, self.tags, self.words = [], [], [], set(), []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.add(tag)
        self.addresses += [
            attrs[name] for name in ("src", "href", "srcset", "action", "data") if name in attrs
        ]
        if tag == "img":
            kind, data = re.fullmatch(r"data:([\w/+]+);base64,(.*)", attrs["src"]).groups()
            self.pictures.append((attrs["alt"], kind, base64.b64decode(data, validate=True)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def picture(self, alt: str) -> tuple[str, np.ndarray]:
        (found,) = [p for p in self.pictures if p[0] == alt]
        return found[1], np.array(Image.open(io.BytesIO(found[2])).convert("RGB"))


def _record(folder: Path, command: str, *, seconds: float | None = None, **config) -> Path:
    write_json(folder / "config.json", {"command": command, "dataset": "folder", "data_path": "/d", **config})
    environment = {"started": "2026-03-01T10:00:00+00:00", "commit": "0123456789ab+", "python": "3.12.1"}
    environment |= {"packages": {"torch": "9.8.7"}, "processor": "Abacus, 2 cores", "gpus": ["GPU X"]}
    write_json(folder / "environment.json", environment | ({} if seconds is None else {"seconds": seconds}))
    return folder


def _log(folder: Path, *records: dict) -> None:
    (folder / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def _confusion() -> ConfusionMatrix:
    """IoU 6/8 of the background, 3/5 of class 0, none of class 1; 9 of 11 pixels right."""
    confusion = ConfusionMatrix(3)
    confusion.update(np.array([[0] * 6 + [1] * 3 + [0, 1]]), np.array([[0] * 6 + [1] * 3 + [1, 0]]))
    return confusion


def _flat(folder: Path, image_id: str, name: str, value: int) -> None:
    write_panel(folder, image_id, name, np.full((6, 8, 3), value, np.uint8))


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A run of both stages, its scores and threshold written by the code that the commands use. Read only."""
    root = tmp_path_factory.mktemp("template") / "a run <1>"
    train = _record(root / "stage1/train", "weaktr.train", seconds=61, backbone="deit_x", seed=504)
    loss = {"loss": 2.0, "class": 1.0, "coarse": 0.5, "fine": 0.5}
    _log(train, {"epoch": 0, **loss}, {"epoch": 1, **loss, "loss": 1.25, "cam_miou": 0.4321,
         "sample_map_class": 0.8125, "class_map_class": 0.75, "cam_threshold": 0.4})  # fmt: skip
    facts = {"images": 40, "with_masks": False, "pictures_per_class": {NAMES[0]: 30, NAMES[1]: 15},
             "classes_per_picture": {"1": 35, "2": 5}}  # fmt: skip
    record = {"dataset": "folder", "root": "/d", "class_names": NAMES, "lists": {"train": facts}}
    write_json(train / "dataset.json", record)
    cams = _record(root / "stage1/cams/val", "weaktr.generate_cam", seconds=30, split="val")
    write_json(cams / "head_weights.json", {"images": 2, "weights": [[0.125, 0.5], [0.75, 0.25], [0.0, 1.0]]})
    threshold = _record(root / "stage1/threshold", "weaktr.search_threshold", seconds=9, split="val")
    accumulator = ThresholdAccumulator(2, [0.2, 0.4, 0.6])
    accumulator.update(np.array([[[0.1, 0.3, 0.5, 0.7]]]), np.array([0]), np.array([[0, 0, 1, 1]]))
    about = {"threshold": 0.4, "selected_by": "best mIoU on the masks of val", "split": "val", "images": 1}
    write_json(threshold / "threshold.json", about | curve_record(accumulator.curve(), NAMES))
    masks = _record(root / "stage1/masks/val", "weaktr.make_masks", seconds=20, split="val", crf=True)
    write_score(masks, _confusion(), NAMES, {"split": "val", "images": 2, "threshold": 0.4,
                "crf_preset": "voc12_cam", "before_crf": {"mean_iou": 0.5125, "pixel_accuracy": 0.7,
                "classes": [{"name": "background", "iou": 0.5125}]}})  # fmt: skip
    train2 = _record(root / "stage2/train", "segmentation.train", backbone="vit_y", seed=504)
    _log(train2, {"step": 5, "loss": 0.9, "clipped_loss": 0.75, "clipped_pixels": 0.125, "val_miou": 0.5625})
    for name, scales in (("single", [1.0]), ("multi_crf", [0.5, 1.0])):
        folder = _record(root / "stage2" / name / "val", "segmentation.predict", split="val", scales=scales)
        write_score(folder, _confusion(), NAMES, {"split": "val", "images": 2})
    for k, image_id in enumerate(IDS):
        for j, column in enumerate(("picture", "truth", "coarse", "cross", "fused")):
            _flat(cams, image_id, column, 10 * j + k)
        _flat(masks, image_id, "pseudo_mask", 100 + k)
        _flat(root / "stage2/single/val", image_id, "prediction", 150 + k)
    _flat(root / "stage2/multi_crf/val", IDS[0], "prediction", 200)
    return root


@pytest.fixture
def run(template, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(template, tmp_path / template.name))


@pytest.fixture
def without_charts(run) -> Path:
    """The copy without what takes time to draw."""
    for path in (*run.rglob("log.jsonl"), *run.rglob("threshold.json")):
        path.unlink()
    return run


@pytest.fixture(scope="module")
def shown(template, tmp_path_factory) -> Path:
    """The run with its page. Read only."""
    root = Path(shutil.copytree(template, tmp_path_factory.mktemp("shown") / template.name))
    run_here("wsss.report", "--run", root)
    return root


@pytest.fixture(scope="module")
def page(shown) -> Page:
    return _read(shown)


def _read(root: Path) -> Page:
    return Page((root / "report.html").read_text(encoding="utf8"))


def _page(root: Path, *options) -> Page:
    run_here("wsss.report", "--run", root, *options)
    return _read(root)


def _row(root: Path, *cells: str) -> bool:
    """Whether a row of a table begins with these cells."""
    text = (root / "report.html").read_text(encoding="utf8")
    rows = [re.sub(r"</t[hd]>", "|", r) for r in re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.S)]
    rows = [html.unescape(re.sub(r"<[^>]*>", "", r)) for r in rows]
    return any(r.startswith("|".join(cells) + "|") for r in rows)


def test_scores_stand_in_both_tables(shown, page):
    mean = f"{100 * (6 / 8 + 3 / 5) / 2:.2f}"
    settings = "threshold 0.40; CRF voc12_cam"
    assert _row(shown, "pseudo-masks", "val", "2", mean, "81.82", settings, "stage1/masks/val")
    assert _row(shown, "pseudo-masks before CRF", "val", "2", "51.25", "70.00", "threshold 0.40")
    assert _row(shown, "prediction", "val", "2", mean, "81.82", "scales 0.5 1.0", "stage2/multi_crf/val")
    # the chosen point of the threshold's curve: all right, the second class occurs nowhere
    assert _row(shown, "CAMs at threshold 0.40", "val", "1", "100.00", "100.00")
    # CAMs, before CRF, masks, two predictions: background, a class that the second lacks, one that is nowhere
    assert _row(shown, "background", "100.00", "51.25", "75.00", "75.00", "75.00")
    assert _row(shown, NAMES[0], "100.00", "–", "60.00", "60.00", "60.00")
    assert _row(shown, NAMES[1], "–", "–", "–", "–", "–")
    assert _row(shown, "mean", "100.00", "51.25", mean, mean, mean)
    assert page.tags.isdisjoint({"script", "link", "iframe", "b"})


def test_curves_weights_threshold_and_facts(shown, page):
    text = page.text
    assert "sum 1.25, class tokens 1, coarse CAM 0.5, fine CAM 0.5" in text
    assert "class tokens, over pictures 81.25%, class tokens, over classes 75%" in text
    assert "CAM mIoU 43.21%" in text
    assert "all pixels 0.9, after clipping 0.75" in text
    assert "labelled pixels 12.5%" in text and "mIoU 56.25%" in text
    assert (
        _row(shown, "1", "0.12", "0.50")
        and _row(shown, "2", "0.75", "0.25")
        and _row(shown, "3", "0.00", "1.00")
    )
    assert "0.40: best mIoU on the masks of val." in text and "chosen 0.40: mIoU 100.0%" in text
    assert "train: 40 pictures without masks" in text
    assert _row(shown, NAMES[0], "30") and _row(shown, NAMES[1], "15") and _row(shown, "2", "5")


def test_charts_hold_the_points(shown, page):
    """The loss of the SVG falls from 2 to 1.25: in an SVG, y grows downwards."""
    charts = [content.decode() for _, kind, content in page.pictures if kind == "image/svg+xml"]
    assert len(charts) == 3 + 3 + 1
    (losses,) = [svg for svg in charts if ">Losses<" in svg]
    (path,) = re.findall(r'<path d="M ([^"]*?)"[^>]*stroke: #1f5fa8', losses, re.S)[:1]
    points = [tuple(map(float, p.split())) for p in path.replace("\n", "").split("L")]
    assert len(points) == 2 and points[0][0] < points[1][0] and points[0][1] < points[1][1]


def test_settings_and_machines(shown, page):
    text = page.text
    assert "backbone deit_x" in text and "deit_x (Stage 1), vit_y (Stage 2)" in text
    for words in ("0123456789ab+", "Abacus, 2 cores", "GPU X", "Python 3.12.1, torch 9.8.7", "1 min 01 s"):
        assert words in text, words
    assert "Time of all steps: 2 min 00 s, without 3 whose time is not recorded." in text
    assert "2026-03-01 10:00" in text


def test_panels_are_inside_and_in_their_columns(shown, page):
    for k, image_id in enumerate(IDS):
        for j, title in enumerate(("picture", "truth", "coarse CAM", "cross attention", "fused CAM")):
            kind, pixels = page.picture(f"{title} of {image_id}")
            assert kind == "image/png" and pixels.shape == (6, 8, 3) and (pixels == 10 * j + k).all()
        assert (page.picture(f"pseudo-mask of {image_id}")[1] == 100 + k).all()
        assert (page.picture(f"prediction, stage2/single/val of {image_id}")[1] == 150 + k).all()
    multi = [alt for alt, _, _ in page.pictures if "multi_crf" in alt]
    assert multi == [f"prediction, stage2/multi_crf/val of {IDS[0]}"]  # the other picture has none
    r, g, b = VOC_PALETTE[6:9]
    source = (shown / "report.html").read_text(encoding="utf8")
    assert f'background: rgb({r}, {g}, {b})"></i>{html.escape(NAMES[1])}<' in source


def test_nothing_is_fetched(shown, page):
    assert page.addresses and all(a.startswith(("data:image/", "#")) for a in page.addresses)
    assert not re.search(r"url\(|@import", (shown / "report.html").read_text(encoding="utf8"))
    for _, kind, content in page.pictures:
        if kind == "image/svg+xml":
            assert not re.search(rb'href="(?!#)|<image|url\((?!#)|@import', content)


def test_same_bytes_again_and_only_the_page_is_written(run, shown):
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    _page(run)
    assert (run / "report.html").read_bytes() == (shown / "report.html").read_bytes()
    after = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    assert after.keys() - before.keys() == {run / "report.html"}
    assert {p: after[p] for p in before} == before


def test_output_and_title(without_charts, tmp_path):
    output = tmp_path / "new folder" / "page.html"
    run_here("wsss.report", "--run", without_charts, "--output", output, "--title", "<Mäuse> & more")
    page = Page(output.read_text(encoding="utf8"))
    assert "<Mäuse> & more" in page.text and not (without_charts / "report.html").exists()


def test_what_is_missing_is_said(tmp_path):
    _record(tmp_path / "cams", "weaktr.generate_cam", split="val")
    _flat(tmp_path / "cams", "x", "coarse", 7)
    page = _page(tmp_path)
    for words in (
        "No scores:", "No facts of the data set:", "no folder of weaktr.train.",
        "no folder of segmentation.train.",
        "No head weights:", "No background threshold:", "No pseudo-masks:", "No predictions:", "No legend:",
        "No IoU per class:", "Time of all steps: not recorded.",
    ):  # fmt: skip
        assert words in page.text, words
    assert "No CAMs:" not in page.text and "Not readable" not in page.text
    assert [alt for alt, _, _ in page.pictures] == ["coarse CAM of x"]


def test_weights_close_to_each_other_keep_their_digits(tmp_path):
    folder = _record(tmp_path, "weaktr.generate_cam")
    write_json(folder / "head_weights.json", {"images": 1, "weights": [[0.9951, 0.9998]]})
    assert "White is the lowest, 0.9951, dark the highest, 0.9998" in _page(tmp_path).text
    assert _row(tmp_path, "1", "0.9951", "0.9998")


def test_threshold_without_masks(tmp_path):
    _record(tmp_path, "weaktr.search_threshold")
    write_json(tmp_path / "threshold.json", {"threshold": 0.43, "selected_by": "published value"})
    text = _page(tmp_path).text
    assert "0.43: published value." in text and "No curve:" in text and "No scores:" in text


def test_lists_without_labels(miniature, tmp_path):
    """As the training commands write the facts, and of a list that has no labels."""
    folder = _record(tmp_path, "segmentation.train")
    write_dataset_facts(folder, load_dataset("folder", miniature), ["train", "val"])
    facts = json.loads((folder / "dataset.json").read_text(encoding="utf8"))
    facts["lists"]["val"] |= {"pictures_per_class": None, "classes_per_picture": None}
    write_json(folder / "dataset.json", facts)
    page = _page(tmp_path)
    assert "train: 16 pictures with masks; val: 6 pictures with masks" in page.text
    assert "No classes of val" in page.text
    for name, count in facts["lists"]["train"]["pictures_per_class"].items():
        assert _row(tmp_path, name, str(count), "–")


BROKEN = {  # file -> content, and words that are on the whole page and then no more
    "stage1/masks/val/score.json": ("{", "CRF voc12_cam"),
    "stage2/single/val/score.json": ('{"mean_iou": "much"}', "scale 1.0"),
    "stage1/threshold/threshold.json": ("[]", "chosen 0.40"),
    "stage1/cams/val/head_weights.json": ('{"images": 1, "weights": [[1], []]}', "blocks across"),
    "stage1/train/dataset.json": ('{"dataset": "folder"}', "40 pictures"),
    "stage1/train/environment.json": ("\xff", "1 min 01 s"),
    "stage2/train/config.json": ('{"backbone": 1}', "vit_y"),
}


def test_broken_files_are_named_and_left_out(run, page):
    for name, (content, _) in BROKEN.items():
        (run / name).write_bytes(content.encode("latin1"))
    text = _page(run).text
    before, listed = text.split("These files are left out of the page:")
    assert str(run) not in listed and "These files" not in page.text
    for name, (_, gone) in BROKEN.items():
        assert listed.count(name) == 1, name
        assert gone in page.text and gone not in before, gone
    for words in ("scales 0.5 1.0", "CAM mIoU 43.21%", "deit_x (Stage 1)", "59.0 s"):  # the others stay
        assert words in text, words


def test_a_log_that_is_being_written(run):
    with (run / "stage2/train/log.jsonl").open("a") as file:
        file.write('{"step": 10, "loss": 0.1')
    text = _page(run).text
    assert "all pixels 0.9" in text and "stage2/train/log.jsonl, line 2: not a JSON object" in text


def test_a_broken_panel_is_named(without_charts):
    (without_charts / "stage1/cams/val/panels" / IDS[1] / "fused.png").write_bytes(b"no picture")
    page = _page(without_charts)
    assert f"stage1/cams/val/panels/{IDS[1]}/fused.png: not a picture" in page.text
    assert f"fused CAM of {IDS[0]}" in [alt for alt, _, _ in page.pictures]


def test_values_that_are_no_numbers(tmp_path):
    folder = tmp_path
    config = {"command": "weaktr.train", "seed": 10**400, "backbone": "\ud800"}  # half a character
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "log.jsonl").write_text(
        '{"epoch": 0, "loss": NaN}\n{"epoch": 1, "loss": 1e999, "class": 0.5}\n'
    )
    (folder / "environment.json").write_text('{"seconds": 1e999, "started": "soon", "gpus": 3}')
    text = _page(tmp_path).text
    assert "class tokens 0.5" in text and "not recorded" in text


def test_numbers_too_large_and_records_too_deep(tmp_path):
    (tmp_path / "config.json").write_text('{"command": "weaktr.train"}')
    lines = ['{"epoch": 0, "loss": -1e308, "class": 0.25}', '{"epoch": 1, "loss": 1e308, "class": 0.5}']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    (tmp_path / "head_weights.json").write_text('{"images": 1, "weights": [[-1e308, 1e308]]}')
    nested = '{"before_crf": ' * 600 + "{}" + "}" * 600
    (tmp_path / "score.json").write_text(nested)
    text = _page(tmp_path).text
    assert "class tokens 0.5" in text and "score.json" in text.split("These files are left out")[1]


def test_runs_of_different_data_are_apart(without_charts):
    """Folders of another data set have their own rows, though ids and lists have the same names."""
    other = _record(without_charts / "other", "weaktr.make_masks", split="val", data_path="/e")
    _flat(other, IDS[0], "pseudo_mask", 77)
    page = _page(without_charts)
    found = [pixels[0, 0, 0] for pixels in _pictures(page, f"pseudo-mask of {IDS[0]}")]
    assert found == [100, 77]
    assert "List: val, /e" in page.text and "List: val, /d" in page.text


def _pictures(page: Page, alt: str) -> list[np.ndarray]:
    return [np.array(Image.open(io.BytesIO(p[2])).convert("RGB")) for p in page.pictures if p[0] == alt]


def test_rows_are_limited_and_shared(without_charts):
    for k in range(30):
        _flat(without_charts / "stage1/cams/val", f"p{k:02d}", "coarse", k)
    more = _record(without_charts / "stage1/cams/train", "weaktr.generate_cam", split="train")
    for k in range(3):
        _flat(more, f"t{k}", "coarse", k)
    shown = [
        alt for alt, _, _ in _page(without_charts, "--panels", 8).pictures if alt.startswith("coarse CAM")
    ]
    # three of one list, five of the other: first the two pictures that every folder has
    assert len(shown) == 8 and sum("of t" in alt for alt in shown) == 3
    assert all(f"coarse CAM of {image_id}" in str(shown) for image_id in IDS)
    assert not [
        alt for alt, kind, _ in _page(without_charts, "--panels", 0).pictures if kind != "image/svg+xml"
    ]
    assert shares([2, 10, 1], 6) == [2, 3, 1] and shares([1, 1], 12) == [1, 1] and shares([], 3) == []


def test_photographs_become_small(tmp_path):
    """Noise, the worst of photographs: JPEG, of the same size, close to the panel."""
    noise = np.random.default_rng(504).integers(0, 256, (300, 256, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    content, kind = encode(tmp_path / "noise.png")
    assert kind == "image/jpeg" and len(content) < (tmp_path / "noise.png").stat().st_size / 2
    assert Image.open(io.BytesIO(content)).size == (218, 256)
    Image.new("RGB", (256, 192), (10, 20, 30)).save(tmp_path / "plain.png")
    content, kind = encode(tmp_path / "plain.png")
    assert kind == "image/png" and Image.open(io.BytesIO(content)).getpixel((0, 0)) == (10, 20, 30)


def test_the_page_does_not_grow_without_bound(tmp_path):
    noise = np.random.default_rng(504).integers(0, 256, (256, 256, 3), np.uint8)
    folder = _record(tmp_path, "weaktr.generate_cam", split="val")
    for k in range(100):
        write_panel(folder, f"{k:03d}", "coarse", noise)
    text = render(read_run(tmp_path), title="t", panels=100)
    shown = len(Page(text).pictures)
    one = len(encode(folder / "panels/000/coarse.png")[0])
    assert shown == BUDGET // one < 100
    assert f"{shown} of 100 pictures" in text


def test_a_moved_run_knows_its_folders(without_charts):
    score = _record(without_charts / "score", "wsss.score", pred_dir="/elsewhere/x/stage1/masks/val")
    write_score(score, _confusion(), NAMES, {"split": "val", "images": 2})
    _page(without_charts)
    assert _row(without_charts, "masks in stage1/masks/val", "val", "2")


def test_bad_folders(tmp_path, capsys):
    line = error_line(capsys, "wsss.report", "--run", tmp_path / "none")
    assert "no such folder" in line and "--run" in line
    (tmp_path / "empty/deep").mkdir(parents=True)
    line = error_line(capsys, "wsss.report", "--run", tmp_path / "empty")
    assert "no config.json" in line and "--run" in line
    _record(tmp_path / "one", "weaktr.train")
    line = error_line(capsys, "wsss.report", "--run", tmp_path / "one", "--output", tmp_path)
    assert "is a folder" in line and "--output" in line
    assert not (tmp_path / "one/report.html").exists()


def test_getam_has_its_section_where_it_was_trained(tmp_path, without_charts):
    assert "GETAM" not in _page(without_charts).text
    folder = _record(tmp_path / "train", "segmentation.getam.train", backbone="deit_tiny")
    common = {"loss": 1.5, "class": 0.2}
    joint = {
        "background": 0.6,
        "foreground": 0.7,
        "energy": -0.1,
        "labelled_foreground": 0.25,
        "val_miou": 0.4,
    }
    _log(folder, {"step": 10, "part": "class", **common}, {"step": 20, "part": "joint", **common, **joint})
    test = _record(tmp_path / "test" / "val", "segmentation.getam.predict", squares=[256, 320], split="val")
    write_score(test, _confusion(), NAMES, {"split": "val", "images": 2, "crf_preset": "getam"})
    page = _page(tmp_path)
    assert "GETAM training" in page.text and "deit_tiny (GETAM)" in page.text
    titles = " ".join(alt for alt, _, _ in page.pictures)
    assert all(title in titles for title in ("Losses", "Labels of the crops", "Validation")), titles
    assert "prediction of GETAM" in page.text and "squares 256 320" in page.text
