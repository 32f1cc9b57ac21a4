"""Every released layout loads by name, strictly and with equal values; what is ambiguous or wrong is said.

The files are written from tests/manifests: names and shapes of the published networks, not of ours.
"""

import ast
import builtins
import os
import re

import numpy as np
import pytest
import torch

from segmentation.getam.model import load_getam
from segmentation.segmenter import load_segmenter
from tests.commands import error_line
from tests.miniature import make
from tests.released_layouts import MANIFESTS, WRAPPERS, drawn_state, manifest, save, training_arguments
from weaktr.model import load_weaktr
from wsss.checkpoint import checkpoint_kind, load_checkpoint, unwrap_state
from wsss.errors import UserError

TENSORS = {
    "weaktr_deit_small": 158,
    "segmenter_deit_small_vit_small": 185,
    "segmenter_dinov2_small": 209,
    "segmenter_eva02_small": 223,
    "getam_vitb": 298,
    "getam_deit_distilled": 301,
    "getam_vitb_hybrid": 442,
}
RECORDED = {
    "weaktr_deit_small": ["stage1/state_keys"],
    "segmenter_deit_small_vit_small": ["deit_small_patch16_224", "vit_small_patch16_384"],
    "segmenter_dinov2_small": ["dinov2_small_patch16_224"],
    "segmenter_eva02_small": ["eva02_small_patch16_224"],
    "getam_vitb": ["getam/keys/vitb"],
    "getam_deit_distilled": ["getam/keys/deit_distilled"],
    "getam_vitb_hybrid": ["getam/keys/vitb_hybrid"],
}
# layout, foreground classes, backbone, the wrapper and how it is saved: every wrapper and format occurs
STAGE_1 = [
    ("weaktr_deit_small", 20, "deit_small_patch16_224", "stage 1", {}),
    ("weaktr_deit_small", 90, "deit_small_patch16_224", "module", {"zipped": False}),
]
STAGE_2 = [
    ("segmenter_deit_small_vit_small", 20, "deit_small_patch16_224", "stage 2", {}),
    ("segmenter_deit_small_vit_small", 90, "deit_small_patch16_224", "bare", {}),
    ("segmenter_deit_small_vit_small", 20, "vit_small_patch16_384", "module", {}),
    ("segmenter_deit_small_vit_small", 90, "vit_small_patch16_384", "stage 2", {"numpy_1": True}),
    ("segmenter_dinov2_small", 20, "dinov2_small_patch16_224", "stage 1", {"numpy_1": True}),
    ("segmenter_dinov2_small", 90, "dinov2_small_patch16_224", "state_dict", {"zipped": False}),
    ("segmenter_eva02_small", 20, "eva02_small_patch16_224", "stage 2", {"zipped": False, "numpy_1": True}),
    ("segmenter_eva02_small", 90, "eva02_small_patch16_224", "module", {}),
]


def test_manifests_have_the_published_numbers_of_tensors():
    assert {path.stem for path in MANIFESTS.glob("*.txt")} == set(TENSORS)
    assert {name: len(manifest(name, 20)) for name in TENSORS} == TENSORS
    assert manifest("weaktr_deit_small", 90)["pos_embed"] == (1, 286, 384)
    assert manifest("segmenter_eva02_small", 90)["decoder.cls_emb"] == (1, 91, 384)


@pytest.mark.parametrize("name", TENSORS)
def test_manifests_are_the_recorded_names_and_shapes(recorded, name):
    cases = np.load(recorded / "cases.npz")
    for key in RECORDED[name]:
        lines = cases[key if "/" in key else f"stage2/keys/{key}"]
        published = dict(str(line).split(" ", 1) for line in lines)
        assert manifest(name, 20) == {k: ast.literal_eval(v) for k, v in published.items()}


def assert_equal_values(model, state):
    """Every tensor of the file, and none besides, is in the network with the file's values."""
    own = model.state_dict()
    assert own.keys() == state.keys()
    for name, value in state.items():
        dtype = torch.int64 if name.endswith("num_batches_tracked") else torch.float32
        assert own[name].dtype == dtype and torch.equal(own[name], value.to(dtype)), name


@pytest.mark.parametrize(("layout", "classes", "backbone", "wrapper", "how"), STAGE_1)
@pytest.mark.parametrize("half", [False, True])
def test_stage_1(tmp_path, layout, classes, backbone, wrapper, how, half):
    state = drawn_state(manifest(layout, classes), torch.float16 if half else torch.float32)
    path = save(tmp_path / "released.pth", WRAPPERS[wrapper](state), **how)
    model, _ = load_weaktr(path)
    assert_equal_values(model, state)
    assert (model.num_classes, model.grid_side, model.num_heads) == (classes, 14, 6)
    assert checkpoint_kind(unwrap_state(load_checkpoint(path), path)) == "weaktr"
    with pytest.raises(UserError, match=r"released\.pth: is a network of stage 1"):
        load_segmenter(path)
    with pytest.raises(
        UserError, match=r"released\.pth: its network \(width 384.*not eva02_small_patch16_224"
    ):
        load_weaktr(path, backbone="eva02_small_patch16_224")


@pytest.mark.parametrize(("layout", "classes", "backbone", "wrapper", "how"), STAGE_2)
def test_stage_2(tmp_path, layout, classes, backbone, wrapper, how):
    state = drawn_state(manifest(layout, classes), torch.float16 if wrapper == "module" else torch.float32)
    path = save(tmp_path / "released.pth", WRAPPERS[wrapper](state), **how)
    ambiguous = backbone.startswith(("deit", "vit"))
    if ambiguous:
        both = "one of deit_small_patch16_224, vit_small_patch16_224, vit_small_patch16_384"
        with pytest.raises(
            UserError, match=rf"released\.pth: .*different pixel statistics; give --backbone, {both}"
        ):
            load_segmenter(path)
    model, entries = load_segmenter(path, backbone=backbone if ambiguous else None)
    assert_equal_values(model, state)
    assert (model.backbone, model.num_classes, model.image_size) == (backbone, classes + 1, 480)
    level = {"vit": 127.5, "eva0": 122.77}.get(backbone.split("_")[0][:4].rstrip("_"), 123.68)
    assert 255 * model.pixel_mean[0] == pytest.approx(level)
    assert "optimizer" not in entries and "model" not in entries
    assert checkpoint_kind(unwrap_state(load_checkpoint(path), path)) == "segmentation"
    for wrong in (
        "deit_base_patch16_224",
        "eva02_small_patch16_224" if ambiguous else "deit_small_patch16_224",
    ):
        with pytest.raises(
            UserError, match=rf"released\.pth: .*not {wrong}; known ones that fit: .*{backbone}"
        ):
            load_segmenter(path, backbone=wrong)
    with pytest.raises(UserError, match=r"released\.pth: is a network of stage 2"):
        load_weaktr(path)


@pytest.mark.parametrize("classes", [20, 80])
@pytest.mark.parametrize(
    ("name", "wrapper", "how"),
    [
        ("vitb", "module", {}), ("deit_distilled", "bare", {"zipped": False}),
        ("vitb_hybrid", "stage 1", {"numpy_1": True}),
    ],
)  # fmt: skip
def test_getam(name, wrapper, how, classes, tmp_path):
    """VOC's 20 classes and COCO's 80; ViT-B and DeiT-B share every shape, and no statistics depend on it."""
    state = drawn_state(manifest(f"getam_{name}", classes))
    path = save(tmp_path / "released.pth", WRAPPERS[wrapper](state), **how)
    assert checkpoint_kind(unwrap_state(load_checkpoint(path), path)) == "getam"
    model, entries = load_getam(path)
    assert_equal_values(model, state)
    assert (model.backbone, model.num_classes) == (name, classes) and not model.training
    assert "optimizer" not in entries and "model" not in entries
    with pytest.raises(UserError, match=rf"released\.pth: .*not deit_tiny; known ones that fit: {name}"):
        load_getam(path, backbone="deit_tiny")
    if classes == 20:
        if name == "vitb":
            assert load_getam(path, backbone="deit")[0].backbone == "deit"
        with pytest.raises(UserError, match=r"released\.pth: "):
            load_segmenter(path)
        del state["scratch.layer1_rn.weight"]
        save(path, WRAPPERS[wrapper](state), **how)
        with pytest.raises(UserError, match=r"released\.pth: .*scratch\.layer1_rn\.weight missing"):
            load_getam(path)


def test_a_state_of_no_kind():
    with pytest.raises(UserError, match=r"x\.pth: no network of stage 1.*layer1\.0\.weight"):
        checkpoint_kind({"layer1.0.weight": torch.ones(1)}, "x.pth")


def test_classes_of_another_data_set(tmp_path, capsys):
    """COCO's network on VOC, of either stage."""
    data = make(tmp_path / "voc", "voc12", train=2, val=1)
    options = ("--dataset", "voc12", "--data-path", data, "--output-dir", tmp_path / "out")
    for module, name in (
        ("segmentation.evaluate", "segmenter_dinov2_small"),
        ("weaktr.generate_cam", "weaktr_deit_small"),
    ):
        path = save(tmp_path / "coco.pth", WRAPPERS["bare"](drawn_state(manifest(name, 90))))
        line = error_line(capsys, module, *options, "--checkpoint", path)
        assert "coco.pth: checkpoint of 90 classes" in line and "has 20; give the checkpoint" in line
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ what a file may hold


@pytest.mark.parametrize(
    "how", [{}, {"numpy_1": True}, {"zipped": False}, {"zipped": False, "numpy_1": True}]
)
def test_values_beside_the_network_are_read_as_they_were(tmp_path, how):
    written = WRAPPERS["stage 1"]({"a.weight": torch.arange(6.0)})
    found = load_checkpoint(save(tmp_path / "c.pth", written, **how))
    assert found["max_accuracy"] == np.float64(0.694) and found["epoch"] == 59
    np.testing.assert_array_equal(found["curve"], written["curve"])
    np.testing.assert_array_equal(found["flags"], [True, False])
    arguments, expected = found["args"], training_arguments()
    assert str(arguments.data_path) == str(expected.data_path) == "/data/VOCdevkit"
    assert arguments.output_dir.parts == ("runs", "weaktr")
    assert not hasattr(arguments.data_path, "open")  # a pure path: it names a file and cannot touch it
    assert arguments.crop.tolist() == [224, 224] and arguments.seed == 504
    assert (arguments.lr, arguments.scales, arguments.device) == (6e-4, (1.0, 1.2), torch.device("cuda"))


class Call:
    """Unpickled by pickle, it calls a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _bombs(marker):
    code = f"open({str(marker)!r}, 'w').close()"
    namespace = training_arguments()
    namespace.hook = Call(os.mkdir, str(marker))
    return {
        "posix.system": {"hook": Call(os.system, f"touch '{marker}'")},
        "eval": {"hook": [Call(builtins.eval, code)]},
        "exec": {"epoch": 3, "lr_scheduler": {"hook": Call(builtins.exec, code)}},
        "posix.mkdir": {"args": namespace},
        "getattr": {"hook": Call(getattr, "text", "upper")},
    }


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", list(_bombs("")))
def test_code_in_a_file_is_refused_and_not_executed(tmp_path, name, zipped):
    marker = tmp_path / "executed"
    content = {"model": {"a.weight": torch.ones(2)}, **_bombs(marker)[name]}
    path = save(tmp_path / "bad.pth", content, zipped=zipped)
    with pytest.raises(UserError, match=rf"bad\.pth: refused.*it holds {re.escape(name)}") as caught:
        load_checkpoint(path)
    assert not marker.exists() and "\n" not in str(caught.value)
    torch.load(path, weights_only=False)  # it would have been
    assert marker.exists() or name == "getattr"


def test_arrays_of_objects_are_refused(tmp_path):
    path = save(tmp_path / "bad.pth", {"x": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(UserError, match=r"bad\.pth: refused"):
        load_checkpoint(path)
