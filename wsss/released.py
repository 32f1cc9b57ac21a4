"""The released files: checkpoints and masks of WeakTr, checkpoints of GETAM, ImageNet starting weights.

``RELEASED`` is the one table; ``python -m wsss.download_checkpoints`` fetches from it, checkpoints/README.md
shows it. The files lie in the checkout's checkpoints folder, or in the one that WEAKTR_CHECKPOINTS names.

No hashes were published: that of a file's first download is recorded in the folder's sha256.json, and another
file is refused later.
"""

import dataclasses
import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path

from wsss.backbones import BACKBONES
from wsss.errors import UserError
from wsss.hosts import drive_address
from wsss.io import read_json, write_json
from wsss.run import sha256

SCRIPT = "bash scripts/download_checkpoints.sh"
RECORD = "sha256.json"
KINDS = ("cam", "segmenter", "getam", "masks", "imagenet")


@dataclass(frozen=True)
class Released:
    """One released file. Exactly one of ``drive_id``, ``url`` and ``hub_name`` says where it is."""

    name: str
    kind: str  # one of KINDS: "cam" is stage 1's network, "masks" an archive of label maps
    data: str | None  # "voc12" or "coco14"; None for ImageNet weights
    backbone: str  # name in wsss.backbones, or of GETAM: vitb, vitb_hybrid, deit, deit_distilled
    filename: str  # below the folder of checkpoints; of masks the folder that they are unpacked into
    drive_id: str | None = None
    url: str | None = None
    hub_name: str | None = None  # timm's, in https://huggingface.co/timm
    published: dict[str, float] = field(default_factory=dict)  # list -> mIoU, percent
    protocol: str = ""  # how it was measured
    sha256: str | None = None  # published digits, the first ones

    @property
    def address(self) -> str:
        """Where a browser finds it."""
        if self.drive_id:
            return drive_address(self.drive_id)
        return self.url or f"https://huggingface.co/timm/{self.hub_name}"

    @property
    def num_classes(self) -> int | None:
        """Classes of its network or masks: stage 1's and GETAM's without background, the others' with it.

        GETAM numbers COCO's 80 categories densely; the others keep the 90 category ids, as published.
        """
        if self.data is None:
            return None
        foreground = {"voc12": 20, "coco14": 80 if self.kind == "getam" else 90}[self.data]
        return foreground + (self.kind in ("segmenter", "masks"))


_SHORT = {
    "deit_s": "deit_small_patch16_224",
    "dinov2_s": "dinov2_small_patch16_224",
    "vit_s": "vit_small_patch16_384",
    "eva02_s": "eva02_small_patch16_224",
}

# data, short name of the backbone: Drive ids of checkpoint and masks, published mIoU of both
_CAMS = {
    ("voc12", "deit_s"): ("1uUHGLIDFm49Gh41Ddc8_T93-bRWnJzeF", "1zv3Wq056aHdUaaKEuychGnedXqkMLr5y", 69.4),
    ("coco14", "deit_s"): ("1Q5UdcGCHFitSJXljZmTA4USKPpyZIVDw", "1ifhVOZX4P9Ku7g66SWNXYyZgCIShQ42P", 42.6),
}
_SEGMENTERS = {
    ("voc12", "deit_s"): (
        "1ONY86MyHSjjoKGdPI_0wmxQ_Go-39W2C", "1Z6ioXhy6L4_2XMrj2dk7QiYPzZnWdbt-",
        {"val": 74.0, "test": 74.1}, 76.5,
    ),
    ("voc12", "dinov2_s"): (
        "1rHu7cSeqc-fLu-_J72UciyL44S7fjCh4", "1f6FeoUt0uf1tmJc9hTDuORAAmOzeTlfD", {"val": 75.8}, 78.1
    ),
    ("voc12", "vit_s"): (
        "1lLY4iNplYTDTTOtnE10OzdjtMDZZfJX0", "1kEhlTVZvIqMGD5ck8UDTxWxXD7UMf3VZ",
        {"val": 78.4, "test": 79.0}, 80.3,
    ),
    ("voc12", "eva02_s"): (
        "1Vf0oNC8P_4E9HN-vQfxMRU1sl4KuRdf1", "1uydc2YHBeiYCIjfABlPz3O2e04knCRzT",
        {"val": 78.5, "test": 79.4}, 80.0,
    ),
    ("coco14", "deit_s"): (
        "1iZN0Gcg_uVRUgxlmQs7suAGjv6bsj4EX", "1qZaiKqqAWFfY_-yxqcv8T29o8z9KytbJ", {"val": 46.9}, 48.9
    ),
    ("coco14", "dinov2_s"): (
        "1U8fA5lSVsrYN5CajqtyUew2NH0dfBZIn", "160DSl-2-Y1UKD7s131cKjqriYBm8vbO1", {"val": 48.9}, 50.7
    ),
    ("coco14", "vit_s"): (
        "13Gr_S8pG42IWDwcvvLcPmSfCW_MSa8fL", "1p-t-4pPIpJZDmj-oJ16PKVG3Yu8sNiaF", {"val": 50.3}, 51.3
    ),
    ("coco14", "eva02_s"): (
        "1mWLn6idxvjveEHt4sF_uZKJa0a6ftGp4", "16gN0pnWn-U1HK8bSQiJUM__U3xq6Z6V_", {"val": 51.1}, 52.2
    ),
}  # fmt: skip

# name: data, GETAM's backbone, Drive id, published mIoU
_GETAM = {
    "getam_voc12_hybrid": (
        "voc12", "vitb_hybrid", "1gOtbWFpi2OTn7NPIPOomnn6cfELgVVVA", {"val": 71.7, "test": 72.3}
    ),
    "getam_voc12_vit": ("voc12", "vitb", "16jMDJTdiXnpax0uhNMgwgPLU6INAcGA4", {"val": 68.1, "test": 68.8}),
    "getam_voc12_deit": ("voc12", "deit", "1XS1YnIjB64EMGPUMOWAl9f1OqIxgVw2Y", {"val": 66.0, "test": 68.9}),
    "getam_voc12_distilled": (
        "voc12", "deit_distilled", "1pFs0ZSAoIwxa1K4P5xxNJSK1-g_5MwkH", {"val": 70.7, "test": 71.1}
    ),
    "getam_coco14_hybrid": ("coco14", "vitb_hybrid", "1LvswI1_B76yalEdUSv2QhxTxCU120y1h", {"val": 36.4}),
}  # fmt: skip

_CAM_PROTOCOL = {
    "voc12": "CAM + CRF",
    "coco14": "CAM + CRF, on 1,250 pictures of train that are not known",
}
_SEGMENTER_PROTOCOL = "multi-scale + CRF, both decoder blocks"
_MASKS_PROTOCOL = "multi-scale + CRF"
_GETAM_PROTOCOL = "squares of 256, 320 and 480 + CRF"

_FAIR = "https://dl.fbaipublicfiles.com"
# backbone: address below _FAIR, and the first digits of the SHA-256 where the name tells them
_FAIR_WEIGHTS = {
    "deit_tiny_patch16_224": ("deit/deit_tiny_patch16_224-a1311bcf.pth", "a1311bcf"),
    "deit_small_patch16_224": ("deit/deit_small_patch16_224-cd65a155.pth", "cd65a155"),
    "deit_base_patch16_224": ("deit/deit_base_patch16_224-b5f2ef4d.pth", "b5f2ef4d"),
    "dinov2_small_patch16_224": ("dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth", None),
    "dinov2_base_patch16_224": ("dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth", None),
    "dinov2_large_patch16_224": ("dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth", None),
    # GETAM's
    "deit": ("deit/deit_base_patch16_384-8de9b5d1.pth", "8de9b5d1"),
    "deit_distilled": ("deit/deit_base_distilled_patch16_384-d0272ac0.pth", "d0272ac0"),
}
_GETAM_HUB = {
    "vitb": "vit_base_patch16_384.orig_in21k_ft_in1k",
    "vitb_hybrid": "vit_base_r50_s16_384.orig_in21k_ft_in1k",
}


def _weaktr(name: str, kind: str, data: str, short: str, drive_id: str, published, protocol: str) -> Released:
    place = f"masks/{name}" if kind == "masks" else f"{name}.pth"
    row = Released(name, kind, data, _SHORT[short], place, drive_id=drive_id)
    return dataclasses.replace(row, published=published, protocol=protocol)


def _imagenet(name: str) -> Released:
    if name in _FAIR_WEIGHTS:
        address, digits = _FAIR_WEIGHTS[name]
        place = f"imagenet/{name}.pth"
        return Released(name, "imagenet", None, name, place, url=f"{_FAIR}/{address}", sha256=digits)
    hub_name = _GETAM_HUB.get(name) or BACKBONES[name].hub_name
    return Released(name, "imagenet", None, name, f"imagenet/{name}.safetensors", hub_name=hub_name)


def _table() -> dict[str, Released]:
    rows = []
    for (data, short), (checkpoint, masks, score) in _CAMS.items():
        name, published, protocol = f"weaktr_cam_{data}_{short}", {"train": score}, _CAM_PROTOCOL[data]
        rows.append(_weaktr(name, "cam", data, short, checkpoint, published, protocol))
        rows.append(_weaktr(f"{name}_masks", "masks", data, short, masks, published, protocol))
    for (data, short), (checkpoint, masks, published, train) in _SEGMENTERS.items():
        name = f"weaktr_{data}_{short}"
        rows.append(_weaktr(name, "segmenter", data, short, checkpoint, published, _SEGMENTER_PROTOCOL))
        rows.append(_weaktr(f"{name}_masks", "masks", data, short, masks, {"train": train}, _MASKS_PROTOCOL))
    for name, (data, backbone, drive_id, published) in _GETAM.items():
        row = Released(name, "getam", data, backbone, f"{name}.pth", drive_id=drive_id, published=published)
        rows.append(dataclasses.replace(row, protocol=_GETAM_PROTOCOL))
    names = [name for name, backbone in BACKBONES.items() if backbone.hub_name]
    rows += [_imagenet(name) for name in (*names, "vitb", "vitb_hybrid", "deit", "deit_distilled")]
    return {row.name: row for row in rows}


RELEASED: dict[str, Released] = _table()


# --------------------------------------------------------------------------------------------- files


def checkpoints_folder() -> Path:
    """Where released files lie: WEAKTR_CHECKPOINTS, else checkpoints/ of the checkout."""
    return Path(os.environ.get("WEAKTR_CHECKPOINTS") or Path(__file__).resolve().parents[1] / "checkpoints")


def find_released(text: str | Path, folder: Path | None = None) -> tuple[Path, Released | None]:
    """A released name, or any file, to the file and its row of the table.

    Args:
        text: A name of ``RELEASED``, or the path of a checkpoint or of a folder of masks.
        folder: Of the released files; default ``checkpoints_folder()``.

    Returns:
        The path, and the row: for a path if it is a released file's place, or has its recorded hash.

    Raises:
        UserError: Neither, or a name whose file is not here (with the command that fetches it).
    """
    folder = checkpoints_folder() if folder is None else Path(folder)
    if (row := RELEASED.get(str(text))) is not None:
        path = folder / row.filename
        if not path.exists():
            raise UserError(f"{path}: {row.name} is not here yet; fetch it with: {SCRIPT} {row.name}")
        return path, row
    path = Path(text)
    if not path.exists():
        close = difflib.get_close_matches(str(text), RELEASED, n=3)
        hint = f", such as {' or '.join(close)}" if close else ""
        raise UserError(
            f"{text}: neither a file nor a released name{hint}; see the names with: {SCRIPT} list"
        )
    place = path.resolve()
    for row in RELEASED.values():
        if (folder / row.filename).resolve() == place:
            return path, row
    return path, _by_hash(path, folder)


def _by_hash(path: Path, folder: Path) -> Released | None:
    """The row whose recorded file this one is a copy of; read only where the size fits."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    fitting = {
        record["sha256"]: RELEASED[name]
        for name, record in read_records(folder).items()
        if name in RELEASED and record.get("size") == size and "sha256" in record
    }
    return fitting.get(sha256(path)) if fitting else None


def read_records(folder: Path) -> dict[str, dict]:
    """What sha256.json tells of each name: ``file``, ``size`` (bytes), ``sha256``, ``source``, ``date``.

    Of masks, size and sha256 are the archive's; ``files`` and ``content_sha256`` are of what was unpacked.
    """
    path = Path(folder) / RECORD
    if not path.exists():
        return {}
    records = read_json(path)
    if not isinstance(records, dict) or not all(isinstance(r, dict) for r in records.values()):
        raise UserError(f"{path}: not a record of hashes; mend it, or delete it to record what is here anew")
    return records


def write_record(folder: Path, name: str, record: dict) -> None:
    """Add one name's entry to sha256.json, or replace it."""
    write_json(Path(folder) / RECORD, dict(sorted((read_records(folder) | {name: record}).items())))
