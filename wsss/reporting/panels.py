"""The report's pictures: what each step makes of the same picture, side by side."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from wsss.errors import UserError
from wsss.io import VOC_PALETTE, read_image
from wsss.panels import PANEL_SIDE, panel_ids
from wsss.reporting.page import escape, image, missing, paragraph
from wsss.reporting.read import Folder, Run
from wsss.reporting.scores import in_order

COLUMNS = {  # name of a panel -> its title, in the order shown; unknown names come before the truth
    "picture": "picture",
    "coarse": "coarse CAM",
    "cross": "cross attention",
    "fused": "fused CAM",
    "pseudo_mask": "pseudo-mask",
    "prediction": "prediction",
    "truth": "truth",
}
MAKERS = {  # what is missed where there is no such panel -> who writes it
    "coarse": ("CAMs", "weaktr.generate_cam"),
    "pseudo_mask": ("pseudo-masks", "weaktr.make_masks"),
    "prediction": ("predictions", "segmentation.predict"),
}
IN_A_LINE = 10  # columns beside each other on a wide screen
LARGE_PNG = 24_000  # bytes; photographs above it are embedded as JPEG, a fifth as large
JPEG_QUALITY = 88
BUDGET = 3_600_000  # bytes of all panels: 4.8 MB as base64


@dataclass(frozen=True)
class Column:
    title: str
    paths: dict[str, Path]  # image id -> panel


@dataclass(frozen=True)
class Group:
    """Panels of the folders that worked on one list of pictures."""

    title: str
    columns: list[Column]

    def ids(self) -> list[str]:
        return sorted({i for column in self.columns for i in column.paths})

    def shown(self, count: int) -> list[str]:
        """``count`` ids spread evenly, those that most columns have before the others."""
        held = {i: sum(i in column.paths for column in self.columns) for i in self.ids()}
        complete = [i for i in held if held[i] == max(held.values())]
        if len(complete) >= count:
            return panel_ids(complete, count)
        return sorted(sorted(held, key=lambda i: (-held[i], i))[:count])


def groups(run: Run) -> list[Group]:
    """One group per data set and list."""
    with_panels = [folder for folder in in_order(run.folders) if folder.panels]
    keys: dict[tuple, list[Folder]] = {}
    for folder in with_panels:
        keys.setdefault((str(folder.config.get("data_path")), folder.split or ""), []).append(folder)
    several_sets = len({data for data, _ in keys}) > 1
    return [
        Group((split or "pictures of no list") + (f", {data}" if several_sets else ""), _columns(folders))
        for (data, split), folders in keys.items()
    ]


def _columns(folders: Sequence[Folder]) -> list[Column]:
    names = {name for folder in folders for panels in folder.panels.values() for name in panels}
    unknown = sorted(names - set(COLUMNS))
    order = [*list(COLUMNS)[:-1], *unknown, "truth"]
    columns = []
    for name in (name for name in order if name in names):
        title, of_folder = COLUMNS.get(name, name), {}
        for folder in folders:
            paths = {i: panels[name] for i, panels in folder.panels.items() if name in panels}
            if paths:
                of_folder[folder.name] = paths
        if name in ("picture", "truth"):  # the same in every folder: the first that has it
            merged = {i: path for paths in reversed(of_folder.values()) for i, path in paths.items()}
            columns.append(Column(title, merged))
        elif len(of_folder) == 1:
            columns.append(Column(title, next(iter(of_folder.values()))))
        else:
            columns += [Column(f"{title}, {folder}", paths) for folder, paths in of_folder.items()]
    return columns


def shares(available: Sequence[int], count: int) -> list[int]:
    """``count`` rows dealt out one by one to lists that have so many."""
    given = [0] * len(available)
    while count and any(g < a for g, a in zip(given, available, strict=True)):
        for k, most in enumerate(available):
            if count and given[k] < most:
                given[k] += 1
                count -= 1
    return given


def section(run: Run, class_names: Sequence[str], count: int) -> tuple[str, list[str]]:
    """HTML of at most ``count`` pictures, and a line for each panel that cannot be read."""
    unreadable: list[str] = []
    found = groups(run)
    parts = [
        missing(f"No {what}: {command} has left no panels; its option --panels N writes them.")
        for name, (what, command) in MAKERS.items()
        if not any(name in panels for folder in run.folders for panels in folder.panels.values())
    ]
    if not found:
        return "\n".join(parts), unreadable
    if count == 0:
        return missing("No pictures: --panels is 0."), unreadable
    parts += [
        _legend(class_names),
        paragraph(
            "A class has the same colour in every column. In CAMs and attention the strongest class of the "
            "picture's labels colours each pixel, the more opaque the higher its value.", "note",
        ),
    ]  # fmt: skip
    left = BUDGET
    for group, share in zip(found, shares([len(g.ids()) for g in found], count), strict=True):
        body = []
        for image_id in group.shown(share):
            encoded = _encode_row(group, image_id, unreadable)
            size = sum(len(content) for content, _ in encoded if content)
            if size > left:
                break
            left -= size
            body.append(_row(group, image_id, encoded))
        parts.append(f"<h3>List: {escape(group.title)}</h3>")
        if len(body) < len(group.ids()):
            parts.append(paragraph(f"{len(body)} of {len(group.ids())} pictures that have panels.", "note"))
        parts += body
    return "\n".join(parts), unreadable


def _encode_row(group: Group, image_id: str, unreadable: list[str]) -> list[tuple[bytes, str]]:
    """Content and media type per column; b"" where there is no panel."""
    encoded = []
    for column in group.columns:
        content = (b"", "")
        if image_id in column.paths:
            try:
                content = encode(column.paths[image_id])
            except UserError as error:
                unreadable.append(str(error))
        encoded.append(content)
    return encoded


def encode(path: Path) -> tuple[bytes, str]:
    """A panel as it goes into the page, never larger than ``PANEL_SIDE``: content and media type.

    Raises:
        UserError: The picture cannot be read.
    """
    picture = Image.fromarray(read_image(path))
    picture.thumbnail((PANEL_SIDE, PANEL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    if buffer.tell() <= LARGE_PNG:
        return buffer.getvalue(), "image/png"
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue(), "image/jpeg"


def _row(group: Group, image_id: str, encoded: Sequence[tuple[bytes, str]]) -> str:
    figures = [
        f"<figure>{image(content, kind, f'{column.title} of {image_id}')}"
        f"<figcaption>{escape(column.title)}</figcaption></figure>"
        if content
        else f'<figure><div class="absent">–</div><figcaption>{escape(column.title)}</figcaption></figure>'
        for column, (content, kind) in zip(group.columns, encoded, strict=True)
    ]
    columns = min(len(group.columns), IN_A_LINE)
    style = f"grid-template-columns: repeat({columns}, minmax(0, {PANEL_SIDE}px))"
    strip = "\n".join(figures)
    return f'<div class="id">{escape(image_id)}</div>\n<div class="strip" style="{style}">\n{strip}\n</div>'


def _legend(class_names: Sequence[str]) -> str:
    if not class_names:
        return missing("No legend: neither a dataset.json nor a score names the classes.")
    chips = []
    for k, name in enumerate(class_names, 1):
        r, g, b = VOC_PALETTE[3 * (k % 256) : 3 * (k % 256) + 3]
        chips.append(f'<span><i style="background: rgb({r}, {g}, {b})"></i>{escape(name)}</span>')
    return f'<div class="legend">{"".join(chips)}<span>background: as in the picture</span></div>'
