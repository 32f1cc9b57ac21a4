"""scripts/figures.py on a run made by hand: which pictures, where, how large, and what is missed."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import ROOT, run_process
from wsss.config import run_command
from wsss.io import VOC_PALETTE, write_json
from wsss.panels import write_panel

IDS = [f"id {k:02d}" for k in range(11)]
COLUMNS = ("picture", "coarse", "cross", "fused", "pseudo_mask", "prediction", "truth")
WEIGHTS = [[0.125, 0.5, 1.0], [0.75, 0.0, 0.25]]
MARGIN, TITLE = 6, 30


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "scripts" / "figures.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = found
    spec.loader.exec_module(found)
    yield found
    del sys.modules["figures"]


def colour(row: int, name: str) -> tuple[int, int, int]:
    """Of a panel: another one for each picture and column."""
    return 20 * row, 30 * COLUMNS.index(name), 100


def flat(folder: Path, row: int, name: str, value=None, size=(40, 60)) -> None:
    picture = np.broadcast_to(np.array(value or colour(row, name), np.uint8), (*size, 3))
    write_panel(folder, IDS[row], name, np.ascontiguousarray(picture))


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Two predictions of one list, the plain one with panels that must not be shown. Read only."""
    root = tmp_path_factory.mktemp("figures") / "a run"
    folders = {
        "stage1/cams/val": ("weaktr.generate_cam", {}),
        "stage1/masks/val": ("weaktr.make_masks", {}),
        "stage2/single/val": ("segmentation.predict", {"crf": False}),
        "stage2/multi_crf/val": ("segmentation.predict", {"crf": True}),
        "stage1/train": ("weaktr.train", {}),
    }
    for name, (command, options) in folders.items():
        record = {"command": command, "split": "val", "data_path": "/d", **options}
        write_json(root / name / "config.json", record)
    facts = {"dataset": "folder", "root": "/d", "class_names": ["one", "two"], "lists": {}}
    write_json(root / "stage1/train/dataset.json", facts)
    write_json(root / "stage1/cams/val/head_weights.json", {"images": 11, "weights": WEIGHTS})
    for row in range(len(IDS)):
        for name in ("picture", "truth", "coarse", "cross", "fused"):
            flat(root / "stage1/cams/val", row, name)
        flat(root / "stage1/masks/val", row, "pseudo_mask")
        flat(root / "stage2/single/val", row, "prediction", (255, 255, 0))
        flat(root / "stage2/multi_crf/val", row, "prediction")
    return root


@pytest.fixture
def run(template, tmp_path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(template, tmp_path / "run"))


def draw(module, run: Path, output: Path, *options) -> np.ndarray:
    words = ["--run", run, "--output-dir", output, *options]
    run_command(module.main, module.Config, list(map(str, words)), prog="scripts/figures.py")
    return np.array(Image.open(output / "quickstart.png").convert("RGB"))


def centre(row: int, column: int) -> tuple[int, int]:
    """Of a panel of 60 x 90 pixels in the table."""
    return TITLE + MARGIN + row * (60 + MARGIN) + 30, MARGIN + column * (90 + MARGIN) + 45


def test_the_table_shows_five_pictures_evenly(module, template, tmp_path):
    table = draw(module, template, tmp_path)
    assert table.shape == (2 * TITLE + 5 * 60 + 6 * MARGIN, 7 * 90 + 8 * MARGIN, 3)
    for row, of_list in enumerate((0, 2, 4, 6, 8)):  # 11 / 5 apart
        for column, name in enumerate(COLUMNS):
            top, left = centre(row, column)
            panel = table[top - 30 : top + 30, left - 45 : left + 45]
            assert (panel == colour(of_list, name)).all(), (row, name)
            assert (table[top - 32, left - 45 : left + 45] == 255).all()
            assert (table[top - 30 : top + 30, left - 47] == 255).all()
    for column in range(len(COLUMNS)):  # a heading over each
        left = centre(0, column)[1]
        assert (table[:TITLE, left - 45 : left + 45] < 128).any()
    legend = table[-TITLE + MARGIN :]
    for k in (1, 2):
        assert (legend == list(VOC_PALETTE[3 * k : 3 * k + 3])).all(-1).sum() > 100
    assert not (legend == list(VOC_PALETTE[9:12])).all(-1).any()


def test_the_same_run_gives_the_same_files(module, template, tmp_path):
    for name in ("a", "b"):
        draw(module, template, tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == ["head_weights.png", "quickstart.png"]
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_rows_and_sizes_of_their_own(module, run, tmp_path):
    """Panels of another shape stand in the middle of their fields."""
    for name in ("picture", "truth", "coarse", "cross", "fused"):
        flat(run / "stage1/cams/val", 0, name, size=(20, 80))
    table = draw(module, run, tmp_path / "out", "--rows", 3)  # pictures 0, 3, 7
    assert table.shape[0] == 2 * TITLE + 60 + 60 + 60 + 4 * MARGIN
    left = MARGIN + 60
    column = table[:, left]
    of_first = np.flatnonzero((column == colour(0, "picture")).all(-1))
    assert of_first.tolist() == list(range(TITLE + MARGIN + 15, TITLE + MARGIN + 45))  # 20 pixels, 1.5 times
    of_second = np.flatnonzero((column == colour(3, "picture")).all(-1))
    assert of_second.tolist() == list(range(TITLE + MARGIN + 66, TITLE + MARGIN + 126))


def test_noise_is_kept_small(module, run, tmp_path, monkeypatch):
    """With fewer levels of each colour, evenly spread from 0 to 255, until the file is small enough."""
    rng = np.random.default_rng(0)
    for folder in (run / "stage1/cams/val", run / "stage1/masks/val", run / "stage2/multi_crf/val"):
        for path in folder.glob("panels/*/*.png"):
            Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    full = draw(module, run, tmp_path / "full")
    size = (tmp_path / "full" / "quickstart.png").stat().st_size
    assert size < module.MOST_BYTES == 600_000
    monkeypatch.setattr(module, "MOST_BYTES", size * 3 // 4)
    found = draw(module, run, tmp_path / "less")
    assert (tmp_path / "less" / "quickstart.png").stat().st_size <= size * 3 // 4
    values = np.unique(found)
    assert len(values) in module.LEVELS and len(values) >= 16
    assert np.abs(values - np.linspace(0, 255, len(values))).max() <= 0.5
    assert np.abs(found.astype(int) - full).max() <= 255 / (len(values) - 1) / 2 + 1
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with pytest.raises(SystemExit):
        draw(module, run, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_head_weights_are_drawn(module, template, tmp_path):
    found = module.head_weights_of(module.read_run(template))
    (axes, scale) = module.draw_head_weights(found).axes
    (picture,) = axes.get_images()
    assert picture.get_array().tolist() == WEIGHTS and picture.get_clim() == (0, 1)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("block", "head")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "2"]
    fields = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert fields == {(b, h): f"{WEIGHTS[h][b]:.2f}" for h in range(2) for b in range(3)}
    assert "11 pictures" in axes.get_title() and scale.get_ylim() == (0, 1)
    draw(module, template, tmp_path)
    assert Image.open(tmp_path / "head_weights.png").size[0] > 400


def refused(module, run, output, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        draw(module, run, output)
    (line,) = [line for line in capsys.readouterr().err.split("\n") if "error:" in line]
    assert stop.value.code == 2 and line.startswith(f"error: {run}: ") and not output.exists()
    return line


def test_what_is_missing_is_named(module, run, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.rmtree(run / "stage1/masks/val/panels")
    line = refused(module, run, out, capsys)
    assert "panels of pseudo-mask are missing" in line and "weaktr.make_masks" in line and "--panels" in line
    for folder in run.glob("**/panels"):
        shutil.rmtree(folder)
    assert "every panel is missing" in refused(module, run, out, capsys)


def test_missing_head_weights_are_named(module, run, tmp_path, capsys):
    (run / "stage1/cams/val/head_weights.json").unlink()
    assert "no head_weights.json" in refused(module, run, tmp_path / "out", capsys)


def test_without_crf_the_plain_prediction_is_shown(module, run, tmp_path):
    shutil.rmtree(run / "stage2/multi_crf")
    table = draw(module, run, tmp_path / "out")
    assert table[centre(1, 5)].tolist() == [255, 255, 0]


def test_the_list_of_most_pictures_is_shown(module, run, tmp_path):
    """Of two complete lists; an incomplete one is not taken, however long."""
    for stage in ("stage1/cams", "stage1/masks", "stage2/multi_crf"):
        shutil.copytree(run / stage / "val", run / stage / "train")
        record = json.loads((run / stage / "train" / "config.json").read_text()) | {"split": "train"}
        write_json(run / stage / "train" / "config.json", record)
        for row in range(3, len(IDS)):
            shutil.rmtree(run / stage / "train" / "panels" / IDS[row])
        for row in range(3):
            for path in (run / stage / "train" / "panels" / IDS[row]).glob("*.png"):
                flat(run / stage / "train", row, path.stem, (9, 9, 9))
    first = draw(module, run, tmp_path / "out")
    assert first[centre(1, 0)].tolist() == list(colour(2, "picture"))
    shutil.rmtree(run / "stage1/masks/val/panels")
    second = draw(module, run, tmp_path / "out")
    assert second[centre(1, 0)].tolist() == [9, 9, 9] and second.shape[0] == first.shape[0] - 2 * 66


def test_the_script(template, tmp_path, monkeypatch):
    monkeypatch.setenv("WEAKTR_PYTHON", sys.executable)
    script = ROOT / "scripts" / "figures.sh"
    done = run_process("bash", script, template, tmp_path / "with space")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "with space" / "quickstart.png").is_file()
    done = run_process("bash", script)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "usage" in done.stderr
