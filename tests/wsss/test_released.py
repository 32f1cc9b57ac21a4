"""The table of released files: complete, consistent, shown in the README, and found from names and files."""

import re
import shutil

import pytest
import timm

from tests.commands import ROOT
from wsss import released_table
from wsss.backbones import BACKBONES
from wsss.errors import UserError
from wsss.released import (
    KINDS,
    RELEASED,
    checkpoints_folder,
    find_released,
    read_records,
    write_record,
)
from wsss.released_table import list_lines, readme_table, update_readme
from wsss.run import sha256

# data, backbone: Drive ids of checkpoint and masks, and the published mIoU of both
CAMS = """
voc12 deit_s 1uUHGLIDFm49Gh41Ddc8_T93-bRWnJzeF 1zv3Wq056aHdUaaKEuychGnedXqkMLr5y 69.4
coco14 deit_s 1Q5UdcGCHFitSJXljZmTA4USKPpyZIVDw 1ifhVOZX4P9Ku7g66SWNXYyZgCIShQ42P 42.6
"""
SEGMENTERS = """
voc12 deit_s 1ONY86MyHSjjoKGdPI_0wmxQ_Go-39W2C 1Z6ioXhy6L4_2XMrj2dk7QiYPzZnWdbt- 74.0 74.1 76.5
voc12 dinov2_s 1rHu7cSeqc-fLu-_J72UciyL44S7fjCh4 1f6FeoUt0uf1tmJc9hTDuORAAmOzeTlfD 75.8 - 78.1
voc12 vit_s 1lLY4iNplYTDTTOtnE10OzdjtMDZZfJX0 1kEhlTVZvIqMGD5ck8UDTxWxXD7UMf3VZ 78.4 79.0 80.3
voc12 eva02_s 1Vf0oNC8P_4E9HN-vQfxMRU1sl4KuRdf1 1uydc2YHBeiYCIjfABlPz3O2e04knCRzT 78.5 79.4 80.0
coco14 deit_s 1iZN0Gcg_uVRUgxlmQs7suAGjv6bsj4EX 1qZaiKqqAWFfY_-yxqcv8T29o8z9KytbJ 46.9 - 48.9
coco14 dinov2_s 1U8fA5lSVsrYN5CajqtyUew2NH0dfBZIn 160DSl-2-Y1UKD7s131cKjqriYBm8vbO1 48.9 - 50.7
coco14 vit_s 13Gr_S8pG42IWDwcvvLcPmSfCW_MSa8fL 1p-t-4pPIpJZDmj-oJ16PKVG3Yu8sNiaF 50.3 - 51.3
coco14 eva02_s 1mWLn6idxvjveEHt4sF_uZKJa0a6ftGp4 16gN0pnWn-U1HK8bSQiJUM__U3xq6Z6V_ 51.1 - 52.2
"""
GETAM = """
voc12 hybrid vitb_hybrid 1gOtbWFpi2OTn7NPIPOomnn6cfELgVVVA 71.7 72.3
voc12 vit vitb 16jMDJTdiXnpax0uhNMgwgPLU6INAcGA4 68.1 68.8
voc12 deit deit 1XS1YnIjB64EMGPUMOWAl9f1OqIxgVw2Y 66.0 68.9
voc12 distilled deit_distilled 1pFs0ZSAoIwxa1K4P5xxNJSK1-g_5MwkH 70.7 71.1
coco14 hybrid vitb_hybrid 1LvswI1_B76yalEdUSv2QhxTxCU120y1h 36.4 -
"""
BACKBONE_OF = {
    "deit_s": "deit_small_patch16_224", "dinov2_s": "dinov2_small_patch16_224",
    "vit_s": "vit_small_patch16_384", "eva02_s": "eva02_small_patch16_224",
}  # fmt: skip


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().split("\n")]


def scores(**values) -> dict[str, float]:
    return {split: float(value) for split, value in values.items() if value != "-"}


def facts(name: str) -> tuple:
    row = RELEASED[name]
    return row.kind, row.data, row.backbone, row.drive_id, row.published


def test_every_published_checkpoint_and_mask_archive_is_there():
    expected = {}
    for data, short, checkpoint, masks, score in rows_of(CAMS):
        name, backbone, found = f"weaktr_cam_{data}_{short}", BACKBONE_OF[short], scores(train=score)
        expected[name] = ("cam", data, backbone, checkpoint, found)
        expected[f"{name}_masks"] = ("masks", data, backbone, masks, found)
    for data, short, checkpoint, masks, val, test, train in rows_of(SEGMENTERS):
        name, backbone = f"weaktr_{data}_{short}", BACKBONE_OF[short]
        expected[name] = ("segmenter", data, backbone, checkpoint, scores(val=val, test=test))
        expected[f"{name}_masks"] = ("masks", data, backbone, masks, scores(train=train))
    for data, short, backbone, drive_id, val, test in rows_of(GETAM):
        expected[f"getam_{data}_{short}"] = ("getam", data, backbone, drive_id, scores(val=val, test=test))
    assert len(expected) == 25
    found = {name: facts(name) for name, row in RELEASED.items() if row.kind != "imagenet"}
    assert found == expected


def test_rows_are_consistent():
    for name, row in RELEASED.items():
        assert row.name == name and row.kind in KINDS
        assert [row.drive_id, row.url, row.hub_name].count(None) == 2
        assert bool(row.published) == bool(row.protocol) == (row.kind != "imagenet")
    places = [row.filename for row in RELEASED.values()]
    addresses = [row.address for row in RELEASED.values()]
    assert len(set(places)) == len(places) and len(set(addresses)) == len(addresses)
    for row in RELEASED.values():
        if row.drive_id:
            assert re.fullmatch(r"[\w-]{33}", row.drive_id) and row.drive_id in row.address
    assert {RELEASED[n].filename for n in ("weaktr_voc12_vit_s", "weaktr_voc12_vit_s_masks", "vitb")} == {
        "weaktr_voc12_vit_s.pth", "masks/weaktr_voc12_vit_s_masks", "imagenet/vitb.safetensors"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("weaktr_cam_voc12_deit_s", 20), ("weaktr_cam_coco14_deit_s", 90), ("weaktr_voc12_vit_s", 21),
        ("weaktr_coco14_vit_s", 91), ("weaktr_cam_coco14_deit_s_masks", 91), ("getam_voc12_vit", 20),
        ("getam_coco14_hybrid", 80), ("deit_tiny_patch16_224", None),
    ],
)  # fmt: skip
def test_classes_as_the_networks_count_them(name, classes):
    assert RELEASED[name].num_classes == classes


GETAM_WEIGHTS = {
    "vitb": "vit_base_patch16_384.orig_in21k_ft_in1k",
    "vitb_hybrid": "vit_base_r50_s16_384.orig_in21k_ft_in1k",
    "deit": "deit_base_patch16_384.fb_in1k",
    "deit_distilled": "deit_base_distilled_patch16_384.fb_in1k",
}


def test_starting_weights_of_every_backbone_at_timms_address():
    """timm's own record of each network says where its weights came from."""
    names = {name: b.hub_name for name, b in BACKBONES.items() if b.hub_name} | GETAM_WEIGHTS
    assert set(names) == {name for name, row in RELEASED.items() if row.kind == "imagenet"}
    for name, hub_name in names.items():
        row, known = RELEASED[name], timm.models.get_pretrained_cfg(hub_name)
        assert row.backbone == name and row.filename.startswith(f"imagenet/{name}.")
        if row.url:
            assert row.url == known.url and row.filename.endswith(".pth")
            assert (row.sha256 or "dinov2") in row.url
        else:
            assert f"timm/{row.hub_name}" == known.hf_hub_id and row.filename.endswith(".safetensors")
            assert row.hub_name == hub_name
    assert sum(bool(RELEASED[name].sha256) for name in names) == 5


def test_readme_shows_the_table():
    text = (ROOT / "checkpoints" / "README.md").read_text(encoding="utf8")
    assert readme_table() in text, "run the command at the end of checkpoints/README.md"
    for row in RELEASED.values():
        assert f"| `{row.name}` |" in text and f"({row.address})" in text
    assert "val 78.4, test 79.0 (multi-scale + CRF, both decoder blocks)" in text


def test_readme_is_written_anew(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    shutil.copy(ROOT / "checkpoints" / "README.md", path)
    before = path.read_text(encoding="utf8")
    update_readme(path)
    assert path.read_text(encoding="utf8") == before
    monkeypatch.setattr(released_table, "readme_table", lambda: "| other |")
    update_readme(path)
    text = path.read_text(encoding="utf8")
    assert "| other |" in text and "1ONY86MyHSjjoKGdPI" not in text and text.startswith("# Checkpoints")


# --------------------------------------------------------------------------------------------- files


def refused(*words):
    return pytest.raises(UserError, match="(?s)^(?!.*\n)" + "".join(f"(?=.*{re.escape(w)})" for w in words))


def test_a_name_is_found_in_the_folder(tmp_path, monkeypatch):
    name = "weaktr_voc12_vit_s"
    with refused(str(tmp_path / f"{name}.pth"), f"bash scripts/download_checkpoints.sh {name}"):
        find_released(name, tmp_path)
    path = tmp_path / f"{name}.pth"
    path.write_bytes(b"x")
    assert find_released(name, tmp_path) == (path, RELEASED[name])
    monkeypatch.setenv("WEAKTR_CHECKPOINTS", str(tmp_path))
    assert find_released(name) == (path, RELEASED[name])
    monkeypatch.delenv("WEAKTR_CHECKPOINTS")
    assert checkpoints_folder() == ROOT / "checkpoints"


def test_a_file_is_found_by_its_place_or_hash(tmp_path, monkeypatch):
    folder, row = tmp_path / "checkpoints", RELEASED["weaktr_cam_voc12_deit_s"]
    folder.mkdir()
    path, copy, other = folder / row.filename, tmp_path / "copy.pth", tmp_path / "other.pth"
    for file, content in ((path, b"one"), (copy, b"one"), (other, b"two")):
        file.write_bytes(content)
    assert find_released(path, folder) == (path, row)
    monkeypatch.chdir(folder)
    assert find_released(row.filename, folder)[1] == row
    assert find_released(copy, folder) == (copy, None)  # nothing recorded
    write_record(folder, row.name, {"size": 3, "sha256": sha256(path)})
    assert find_released(str(copy), folder) == (copy, row)
    assert find_released(other, folder) == (other, None)
    masks = folder / "masks" / "weaktr_cam_voc12_deit_s_masks"
    masks.mkdir(parents=True)
    assert find_released(masks, folder)[1].kind == "masks"
    assert find_released(tmp_path, folder) == (tmp_path, None)


def test_what_is_neither_name_nor_file(tmp_path):
    with refused("weaktr_voc12_deit", "weaktr_voc12_deit_s", "download_checkpoints.sh list"):
        find_released("weaktr_voc12_deit", tmp_path)
    with refused("runs/last.pth: neither a file nor a released name;", "list"):
        find_released("runs/last.pth", tmp_path)


def test_records_are_kept_and_damaged_ones_named(tmp_path):
    assert read_records(tmp_path) == {}
    write_record(tmp_path, "b", {"sha256": "1"})
    write_record(tmp_path, "a", {"sha256": "2"})
    write_record(tmp_path, "b", {"sha256": "3"})
    assert read_records(tmp_path) == {"a": {"sha256": "2"}, "b": {"sha256": "3"}}
    for text in ("[1]", '{"a": 1}', "{"):
        (tmp_path / "sha256.json").write_text(text)
        with refused("sha256.json"):
            read_records(tmp_path)


def test_list_tells_what_is_here(tmp_path):
    row = RELEASED["weaktr_voc12_vit_s"]
    (tmp_path / row.filename).write_bytes(b"x")
    write_record(tmp_path, row.name, {"size": 88_500_000, "sha256": "ab" * 32})
    lines = list_lines(tmp_path)
    assert len(lines) == 1 + len(RELEASED)
    (line,) = (line for line in lines if line.startswith(f"{row.name} "))
    assert re.split(r"\s{2,}", line) == [
        row.name, "WeakTr, stage 2", "voc12", "vit_small_patch16_384", "val 78.4, test 79.0", "88.5 MB",
        "abababababab...", "yes",
    ]  # fmt: skip
    assert sum(line.endswith(" yes") for line in lines) == 1
    assert any("deit_small_patch16_224 " in line and "cd65a155... (published)" in line for line in lines)
