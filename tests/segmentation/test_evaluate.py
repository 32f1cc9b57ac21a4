"""segmentation.evaluate: its rows against segmentation.predict's, one pass, continuing, table, bad input."""

import dataclasses
import json
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import segmentation.evaluate
import segmentation.label_maps
import wsss.crf
from segmentation.evaluate import ROWS, backbone_source
from segmentation.inference import Protocol, predict_each, predict_probs
from segmentation.memory import fitting_protocols, needed_memory
from segmentation.segmenter import Segmenter, build_segmenter, load_segmenter
from tests.commands import ROOT, argv, error_line, finish, run_here, run_process
from wsss.checkpoint import load_checkpoint, save_checkpoint
from wsss.errors import UserError
from wsss.io import write_json
from wsss.released import RELEASED
from wsss.run import sha256

MODULE = "segmentation.evaluate"
OPTIONS = {  # of segmentation.predict, for each row
    "single_last": (),
    "single_fused": ("--decoder-blocks", "fused"),
    "multi_last": ("--multi-scale",),
    "multi_fused": ("--multi-scale", "--decoder-blocks", "fused"),
    "multi_crf_last": ("--multi-scale", "--crf"),
    "multi_crf_fused": ("--multi-scale", "--decoder-blocks", "fused", "--crf"),
}
PLAIN = [name for name in OPTIONS if "crf" not in name]
SMALL = {"short_side": 36, "window": 32, "stride": 24}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that has learned nothing, as training saves it: on noise its rows differ."""
    torch.manual_seed(0)
    model = build_segmenter("vit_micro_patch8_96", num_classes=4, image_size=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    content = {
        "model": model.state_dict(),
        "model_args": {"backbone": "vit_micro_patch8_96", "num_classes": 4, "image_size": 32},
        "class_names": ["disc", "square", "triangle"],
        "preprocessing": SMALL,
        "step": 8,
        "best": None,
    }
    path = tmp_path_factory.mktemp("evaluate") / "last.pth"
    save_checkpoint(path, content)
    return path


@pytest.fixture(scope="module")
def whole(miniature, checkpoint, tmp_path_factory):
    """All rows of the validation list. Read only."""
    pytest.importorskip("pydensecrf")
    out = tmp_path_factory.mktemp("whole") / "out"
    run_here(
        MODULE, "--data-path", miniature, "--checkpoint", checkpoint, "--output-dir", out, "--workers", 1
    )
    return out


def maps(folder):
    """Row/name -> content of all label maps."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for name in ROWS for p in (folder / name).glob("*.png")
    }


# ----------------------------------------------------------------------------------------------- the rows


@pytest.mark.parametrize("row", OPTIONS)
def test_a_row_is_what_predict_writes(row, whole, miniature, checkpoint, tmp_path):
    run_here(
        "segmentation.predict", "--data-path", miniature, "--checkpoint", checkpoint,
        "--output-dir", tmp_path, "--workers", 0, *OPTIONS[row],
    )  # fmt: skip
    expected = {f"{row}/{p.name}": p.read_bytes() for p in tmp_path.glob("*.png")}
    assert len(expected) == 6
    assert {name: data for name, data in maps(whole).items() if name.startswith(f"{row}/")} == expected
    ours, theirs = (json.loads((f / "score.json").read_text()) for f in (whole / row, tmp_path))
    assert {k: ours[k] for k in theirs if k != "pred_dir"} == {
        k: v for k, v in theirs.items() if k != "pred_dir"
    }


def test_rows_differ(whole):
    """The test above compares six different results."""
    found = maps(whole)
    assert len({tuple(v for k, v in sorted(found.items()) if k.startswith(f"{row}/")) for row in ROWS}) == 6


def test_one_pass_for_all_rows(miniature, checkpoint, tmp_path, monkeypatch):
    """As many windows go through the network as the six scales with mirrors have; each gives both blocks."""

    def windows_of(module, *options):
        counted = []
        logits = Segmenter._logits

        def counting(self, images, blocks):
            counted.append((len(images), len(list(blocks))))
            return logits(self, images, blocks)

        with monkeypatch.context() as patch:
            patch.setattr(Segmenter, "_logits", counting)
            out = tmp_path / f"{module}{len(options)}"
            run_here(module, *common, "--output-dir", out, *options)
        return sum(n for n, _ in counted), {blocks for _, blocks in counted}

    common = ("--data-path", miniature, "--checkpoint", checkpoint, "--workers", 0)
    multi = windows_of("segmentation.predict", "--multi-scale", "--decoder-blocks", "fused")
    assert multi[1] == {2} and multi[0] > 300
    assert windows_of(MODULE, "--rows", *PLAIN) == multi
    single = windows_of("segmentation.predict")
    assert (
        windows_of(MODULE, "--rows", "single_last") == single
        and single[1] == {1}
        and single[0] < multi[0] / 6
    )


def test_protocols_of_one_pass_have_the_bits_they_have_alone(checkpoint):
    model, _ = load_segmenter(checkpoint)
    image = np.random.default_rng(0).integers(0, 256, (45, 61, 3), dtype=np.uint8)
    protocols = [
        Protocol(scales=scales, flip=flip, decoder_blocks=blocks, window_batch=5, **SMALL)
        for scales, flip in (((1.0,), False), ((0.5, 1.0, 1.5), True))
        for blocks in ("last", "fused")
    ]
    for order in (protocols, protocols[::-1]):
        for protocol, probs in zip(order, predict_each(model, image, order), strict=True):
            assert torch.equal(probs, predict_probs(model, image, protocol))
    twice = Protocol(scales=(0.5, 1.0, 1.0), **SMALL)
    once = [predict_probs(model, image, Protocol(scales=(s,), **SMALL)) for s in (0.5, 1.0)]
    assert (predict_probs(model, image, twice) - (once[0] + 2 * once[1]) / 3).abs().max() < 1e-6
    with pytest.raises(ValueError, match="share short side"):
        next(predict_each(model, image, [protocols[0], Protocol()]))


def test_memory_of_one_pass(checkpoint, monkeypatch):
    """More than that of its largest protocol: sums of the others; windows at a time shrink for all alike."""
    model, _ = load_segmenter(checkpoint)
    single, multi = Protocol(**SMALL), Protocol(scales=(0.5, 1.0), flip=True, decoder_blocks="fused", **SMALL)
    fixed, probs = needed_memory(model, (300, 400), multi)
    both = needed_memory(model, (300, 400), single, multi)
    assert both == (fixed, probs + 2 * 4 * 4 * 300 * 400)  # two blocks of four classes more
    monkeypatch.setattr(segmentation.memory, "free_memory", lambda device: sum(both) / 0.8 - 1)
    fitting = fitting_protocols(model, (300, 400), [single, multi])
    assert [p.window_batch for p in fitting] == [4, 4]


# -------------------------------------------------------------------------- continuing, several processes


def test_killed_and_continued_with_further_rows(whole, miniature, checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = ("--data-path", miniature, "--checkpoint", checkpoint, "--output-dir", out, "--workers", 0)
    command = (sys.executable, ROOT / "tests" / "die_in_write.py", 5, ".png", MODULE, *options)
    done = run_process(*command, "--rows", "single_last", "multi_fused")
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert len(maps(out)) == 4 and not (out / "evaluation.json").exists()
    run_here(MODULE, *options, "--rows", "multi_fused", "single_last")
    assert [r["name"] for r in json.loads((out / "evaluation.json").read_text())["rows"]] == [
        "single_last", "multi_fused",
    ]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in out.rglob("2*.png")}
    run_here(MODULE, *options)
    assert maps(out) == maps(whole)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    monkeypatch.setattr(segmentation.label_maps, "predict_each_in_memory", None)
    run_here(MODULE, *options)  # everything is there: scores alone
    ours, theirs = (json.loads((f / "evaluation.json").read_text()) for f in (out, whole))
    assert ours == theirs


def test_two_processes_give_the_same_bytes(whole, miniature, checkpoint, tmp_path):
    options = ("--data-path", miniature, "--checkpoint", checkpoint, "--output-dir", tmp_path, "--workers", 1)
    printed = finish(*argv(MODULE, *options, processes=2))
    assert maps(tmp_path) == maps(whole) and len(maps(tmp_path)) == 36
    assert printed.count("wrote 36 label maps") == 1 and printed.count("| multi_crf_fused |") == 1


def test_another_checkpoint_in_the_same_folder_is_refused(whole, miniature, checkpoint, tmp_path, capsys):
    other = tmp_path / "other.pth"
    save_checkpoint(other, load_checkpoint(checkpoint) | {"step": 9})
    line = error_line(capsys, MODULE, "--data-path", miniature, "--checkpoint", other, "--output-dir", whole)
    assert "checkpoint_sha256 was" in line and "--overwrite" in line


# ---------------------------------------------------------------------------------------------- the table


def test_table_and_what_is_below_it(whole, miniature, checkpoint, tmp_path):
    record = json.loads((whole / "evaluation.json").read_text())
    text = (whole / "evaluation.md").read_text()
    assert [row["name"] for row in record["rows"]] == list(ROWS)
    for row in record["rows"]:
        name = row["name"]
        score = tmp_path / name
        run_here("wsss.score", "--data-path", miniature, "--pred-dir", whole / name, "--output-dir", score)
        expected = json.loads((score / "score.json").read_text())
        assert row["mean_iou"] == expected["mean_iou"] and 0 < row["mean_iou"] < 1
        assert json.loads((whole / name / "score.json").read_text())["classes"] == expected["classes"]
        assert row["published"] is None
        line = next(line for line in text.split("\n") if line.startswith(f"| {name} "))
        assert [cell.strip() for cell in line.split("|")[3:5]] == [f"{100 * row['mean_iou']:.2f}", "-"]
    assert record["checkpoint_sha256"] == sha256(checkpoint) and record["released"] is None
    assert record["checkpoint_chosen_by"] == "step 8, the last"
    assert (record["backbone"], record["backbone_from"]) == (
        "vit_micro_patch8_96",
        "recorded in the checkpoint",
    )
    assert (record["split"], record["images"], record["crf_preset"]) == ("val", 6, "voc12_segmentation")
    assert record["mask_dir"] == str(miniature / "masks") and record["notes"] == []
    for line in (
        "- split: val",
        "- images: 6",
        "- pixel mean: 127.5 127.5 127.5",
        "- exif: no",
        "- window: 32",
    ):
        assert line in text.split("\n")


def test_backbone_source():
    assert backbone_source(None, {"model_args": {}}, given=True) == "recorded in the checkpoint"
    assert backbone_source(None, {}, given=True) == "given with --backbone"
    assert backbone_source(None, {}, given=False) == "inferred from the tensors"
    assert "weaktr_voc12_vit_s" in backbone_source(RELEASED["weaktr_voc12_vit_s"], {}, given=False)


@pytest.fixture
def released(checkpoint, tmp_path, monkeypatch):
    """A released network, downloaded: "tiny", with 12.3 published on val, of data in the folder layout."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    monkeypatch.setenv("WEAKTR_CHECKPOINTS", str(folder))
    row = dataclasses.replace(
        RELEASED["weaktr_voc12_vit_s"], name="tiny", data="folder", backbone="vit_micro_patch8_96",
        filename="tiny.pth", published={"val": 12.3},
    )  # fmt: skip
    monkeypatch.setitem(RELEASED, "tiny", row)
    shutil.copy(checkpoint, folder / "tiny.pth")
    for name, value in SMALL.items():  # the published settings, for this test
        monkeypatch.setattr(Protocol, name, value)
    return folder / "tiny.pth"


def published_of(out):
    record = json.loads((out / "evaluation.json").read_text())
    return {row["name"]: row["published"] for row in record["rows"]}, record


def test_published_number_by_name_and_by_hash(released, miniature, tmp_path, capsys):
    pytest.importorskip("pydensecrf")
    common = ("--data-path", miniature, "--rows", "multi_crf_fused", "single_last", "--workers", 0)
    run_here(MODULE, *common, "--checkpoint", "tiny", "--output-dir", tmp_path / "name")
    printed = capsys.readouterr().out
    published, record = published_of(tmp_path / "name")
    assert published == {"single_last": None, "multi_crf_fused": 0.123}
    assert record["released"] == "tiny" and record["checkpoint"] == str(released)
    assert record["backbone_from"] == "known of the released tiny"
    row = next(line for line in printed.split("\n") if line.startswith("| multi_crf_fused"))
    assert row.split("|")[4].strip() == "12.3"
    # a copy elsewhere is known by its recorded hash
    copy = tmp_path / "copy.pth"
    shutil.copy(released, copy)
    found = {"file": "tiny.pth", "size": copy.stat().st_size, "sha256": sha256(copy)}
    write_json(released.parent / "sha256.json", {"tiny": found})
    out = tmp_path / "name"
    run_here(MODULE, *common, "--checkpoint", copy, "--output-dir", out)
    assert published_of(out)[0]["multi_crf_fused"] == 0.123
    # on another list, or with another window, it is not the published test
    for i, options in enumerate((("--split", "train"), ("--stride", 20))):
        run_here(MODULE, *common, "--checkpoint", "tiny", "--output-dir", tmp_path / str(i), *options)
        assert published_of(tmp_path / str(i))[0] == {"single_last": None, "multi_crf_fused": None}


def test_released_network_with_a_wrong_backbone_and_of_another_kind(released, miniature, tmp_path, capsys):
    common = (MODULE, "--data-path", miniature, "--output-dir", tmp_path / "out", "--checkpoint")
    line = error_line(capsys, *common, "tiny", "--backbone", "deit_small_patch16_224")
    assert "the released tiny is a vit_micro_patch8_96, not deit_small_patch16_224" in line
    cam = RELEASED["weaktr_cam_voc12_deit_s"]
    shutil.copy(released, released.parent / cam.filename)
    line = error_line(capsys, *common, cam.name)
    assert f"{cam.name} is no segmenter" in line and "scripts/evaluate.sh" in line
    line = error_line(capsys, *common, "weaktr_voc12_eva02_s")
    assert "weaktr_voc12_eva02_s is not here yet" in line and "download_checkpoints.sh" in line
    assert not (tmp_path / "out").exists()


def test_without_masks_label_maps_are_made_and_nothing_is_scored(
    miniature_without_masks, checkpoint, tmp_path, capsys
):
    options = ("--data-path", miniature_without_masks, "--checkpoint", checkpoint, "--output-dir", tmp_path)
    run_here(MODULE, *options, "--rows", "single_last", "--workers", 0)
    printed = capsys.readouterr().out
    assert f"No score: not every picture of val has a mask in {miniature_without_masks / 'masks'}." in printed
    assert len(maps(tmp_path)) == 6 and not (tmp_path / "single_last" / "score.json").exists()
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert record["rows"][0]["mean_iou"] is None and record["mask_dir"] is None
    assert "| single_last | one scale, last decoder block |    - |         - |" in printed


def test_masks_without_a_counted_pixel(miniature, checkpoint, tmp_path, capsys):
    data = shutil.copytree(miniature, tmp_path / "data")
    for path in (data / "masks").iterdir():
        Image.new("L", Image.open(path).size, 255).save(path)
    options = ("--data-path", data, "--checkpoint", checkpoint, "--output-dir", tmp_path / "out")
    run_here(MODULE, *options, "--rows", "single_last", "--workers", 0)
    assert "single_last: no score, every pixel of the masks is 255" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--rows", "single"), ("--rows single: no such row", "multi_crf_fused")),
        (("--window", 40, "--stride", 41), ("--stride 41", "gaps")),
        (("--split", "test"), ("no list 'test'",)),
        (("--amp", "float16"), ("--amp float16", "GPU")),
        (
            ("--backbone", "deit_tiny_patch16_224"),
            ("last.pth: is a vit_micro_patch8_96", "leave --backbone out"),
        ),
    ],
)
def test_options_that_do_not_fit(options, words, miniature, checkpoint, tmp_path, capsys):
    common = ("--data-path", miniature, "--checkpoint", checkpoint, "--output-dir", tmp_path / "out")
    line = error_line(capsys, MODULE, *common, *options)
    for word in words:
        assert word in line
    assert not (tmp_path / "out").exists()


def test_a_network_of_stage_1_is_named(trained, miniature, tmp_path, capsys):
    common = ("--data-path", miniature, "--output-dir", tmp_path / "out")
    line = error_line(capsys, MODULE, *common, "--checkpoint", trained / "best.pth")
    assert "best.pth: is a network of stage 1" in line and not (tmp_path / "out").exists()


def test_missing_crf_package_leaves_the_other_rows(miniature, checkpoint, tmp_path, capsys, monkeypatch):
    def missing():
        raise UserError(
            "pydensecrf cannot be imported (gone); install it with: pip, or go without it: --no-crf"
        )

    monkeypatch.setattr(segmentation.evaluate, "check_crf_installed", missing)
    common = ("--data-path", miniature, "--checkpoint", checkpoint, "--output-dir", tmp_path / "out")
    line = error_line(capsys, MODULE, *common)
    remedy = f"or go without it: --rows {' '.join(PLAIN)}"
    assert line.endswith(remedy) and "--no-crf" not in line
    assert not (tmp_path / "out").exists()


def test_the_remedy_for_a_missing_crf_package_is_cut_where_it_stands(monkeypatch):
    """The words above are those of wsss.crf."""
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(UserError, match=r", or go without it: --no-crf$"):
        wsss.crf.check_crf_installed()


def test_bad_picture_stops_after_the_files_before_it(miniature, checkpoint, tmp_path, capsys):
    data = shutil.copytree(miniature, tmp_path / "data")
    ids = (data / "val.txt").read_text(encoding="utf8").split("\n")[:-1]
    bad = next(p for p in (data / "images").iterdir() if p.stem == ids[2])
    bad.write_bytes(bad.read_bytes()[:500])
    common = ("--data-path", data, "--checkpoint", checkpoint, "--output-dir", tmp_path / "out")
    line = error_line(capsys, MODULE, *common, "--rows", "single_last", "single_fused", "--workers", 2)
    assert bad.name in line and "truncated" in line
    assert sorted(maps(tmp_path / "out")) == sorted(
        f"{row}/{i}.png" for row in ("single_last", "single_fused") for i in ids[:2]
    )
