"""Files: atomic writing, text, JSON, pictures, masks.

Every reader turns a missing, damaged or unsuitable file into a ``UserError`` that names it. What each kind of
picture is converted to is listed in docs/data.md.
"""

import codecs
import contextlib
import json
import math
import os
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from wsss.errors import UserError

# Pillow tells formats by content. Only these are tried: others can start programs (EPS) or play films.
PICTURE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
IGNORED = 255  # in masks: no label
MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 512 MiB of RGB
_JPEG_SUFFIXES = (".jpg", ".jpeg")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; when the block ends well, flush it to disk and rename it.

    ``path`` holds its old content or all of the new one, whenever the process dies. The temporary name
    is fixed (``.NAME.tmp``), so that a killed run leaves at most one and the next run writes over it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------------------------------------- text


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with the line ends that ``text`` has."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf8", newline="")


def read_bytes(path: Path) -> bytes:
    """Content of a file; UserError if there is none or it cannot be read."""
    path = Path(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(_unreadable(path, error)) from None


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, a byte-order mark removed, line ends as stored.

    Raises:
        UserError: No such file, not readable, or not UTF-8.
    """
    data = read_bytes(path)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path}: is UTF-16 text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None


def read_numbered_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, line) of the lines that are not blank.

    Blanks at both ends of a line are removed, a byte-order mark and Windows or old Mac line ends too. Text is
    brought to Unicode's composed form (NFC), so that names typed on one system match files from another.

    Raises:
        UserError: No such file, not readable, or not UTF-8.
    """
    text = unicodedata.normalize("NFC", read_text(path)).replace("\r\n", "\n").replace("\r", "\n")
    return [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def read_lines(path: Path) -> list[str]:
    """The lines of ``read_numbered_lines`` without their numbers."""
    return [line for _, line in read_numbered_lines(path)]


def read_json(path: Path, **hooks) -> Any:
    """Parse a JSON file; ``hooks`` go to ``json.loads``.

    Raises:
        UserError: No such file, not UTF-8, or not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text, **hooks)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}); mend it or fetch it again"
        ) from None
    except RecursionError:
        raise UserError(f"{path}: JSON nested too deeply; mend it or fetch it again") from None


def write_json(path: Path, obj: Any) -> None:
    """Write JSON atomically. NumPy values become plain ones, paths strings, nan and infinities null."""
    write_text(path, json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


# ------------------------------------------------------------------------------------------ pictures


def read_image(path: Path, *, exif: bool = False) -> np.ndarray:
    """Read a picture as uint8 RGB, (H, W, 3). Of a file with several pictures, the first.

    Grey and 1-bit pictures get three equal channels; CMYK, YCbCr and palettes are converted; 16-bit values
    keep their high byte (as Pillow does for 16-bit colour); transparent pictures are laid over white.

    Args:
        path: JPEG, PNG, BMP, WebP or TIFF, recognised by content.
        exif: Turn the picture as its EXIF tag says. False keeps the pixels as stored.

    Raises:
        UserError: Missing, damaged or truncated file, not a picture, more than ``MAX_PIXELS``, or a kind of
            pixel without a defined range (floating point, 32-bit, signed).
    """
    image = _turn(_load_picture(path), path, exif=exif)
    if image.mode.startswith(("I", "F")):
        return np.repeat(_high_byte(image, path)[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def read_size(path: Path) -> tuple[int, int]:
    """(H, W) of a picture as stored, from its header: damage behind that is not seen.

    Raises:
        UserError: As ``read_image``, as far as the header tells.
    """
    image = _load_picture(path, pixels=False)
    width, height = image.size
    turned = image.info.get("turned_by_tiff") in (5, 6, 7, 8)  # Pillow gives the size that loading would
    return (width, height) if turned else (height, width)


def read_mask(path: Path) -> np.ndarray:
    """Read a label map as class indices, uint8 (H, W).

    Accepted: palette pictures (the index counts, not the colour), grey ones of 1, 2, 4 or 8 bits (the stored
    number), and of 16 bits where no value is above 255.

    Raises:
        UserError: As ``read_image``; or a colour picture, one with alpha, a JPEG, or a value above 255.
    """
    image = _load_picture(path)
    kind = image.format
    image = _turn(image, path, exif=False)
    if kind in ("JPEG", "MPO", "WEBP"):
        raise UserError(
            f"{path}: is a {kind} picture, whose compression changes class indices; give masks as PNG"
        )
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        values = np.array(image)
        if values.min() < 0 or values.max() > 255:
            raise UserError(
                f"{path}: holds the value {int(values.max())}, class indices end at 255; "
                "give masks as 8-bit palette or grey PNG"
            )
        return values.astype(np.uint8)
    if image.mode not in ("1", "L", "P"):
        raise UserError(
            f"{path}: is a {image.mode} picture, not a map of class indices; "
            "give masks as 8-bit palette or grey PNG, one class index per pixel"
        )
    # Pillow stretches grey of 2 and 4 bits to 0..255 as it reads: a mask wants the stored numbers.
    stretch = {"L;2": 85, "L;4": 17}.get(image.info.get("raw_mode"), 1)
    return (np.array(image) // stretch).astype(np.uint8) if stretch > 1 else np.array(image, np.uint8)


def _voc_palette() -> bytes:
    """PASCAL VOC's 256 colours: bits 0, 3, 6 of an index are red's top bits; 1, 4, 7 green's; 2, 5 blue's."""
    colours = np.zeros((256, 3), np.uint8)
    for index in range(256):
        for bit in range(8):
            for channel in range(3):
                colours[index, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
    return colours.tobytes()


VOC_PALETTE = _voc_palette()  # 768 bytes: r, g, b of index 0, 1, ..., 255


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write class indices as an 8-bit palette PNG with VOC's colours, atomically.

    Args:
        path: The file; its folder is created.
        mask: (H, W), integers or booleans, 0..255.

    Raises:
        ValueError: Another shape, type or range.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.size == 0 or mask.dtype.kind not in "iub":
        raise ValueError(f"a mask is a (H, W) array of integers, not {mask.dtype} {mask.shape}")
    if mask.min() < 0 or mask.max() > 255:
        raise ValueError(f"class indices are 0..255, not {mask.min()}..{mask.max()}")
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette(VOC_PALETTE)
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 RGB, (H, W, 3), atomically: JPEG (quality 95) for .jpg and .jpeg, PNG for .png.

    Raises:
        ValueError: Another shape, type or suffix.
    """
    image = np.asarray(image)
    suffix = Path(path).suffix.lower()
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
        raise ValueError(f"a picture is a uint8 (H, W, 3) array, not {image.dtype} {image.shape}")
    if suffix not in (".png", *_JPEG_SUFFIXES):
        raise ValueError(f"{path}: pictures are written as .png or .jpg")
    with atomic_write(path) as temporary:
        if suffix == ".png":
            Image.fromarray(image).save(temporary, format="PNG")
        else:
            Image.fromarray(image).save(temporary, format="JPEG", quality=95)


def _load_picture(path: Path, *, pixels: bool = True) -> Image.Image:
    """The picture, decoded unless ``pixels`` is False; every way a file can be bad becomes a UserError."""
    path = Path(path)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF, sizes below the limit: nothing the user must act on
            image = Image.open(file, formats=PICTURE_FORMATS)
            if image.tile:
                image.info["raw_mode"] = image.tile[0][3]
            if image.format == "TIFF":  # the one format that Pillow turns by itself while it loads
                image.info["turned_by_tiff"] = image.getexif().get(0x0112)
            if pixels:
                image.load()
            return image
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"{path}: more than {MAX_PIXELS // 10**6} million pixels; make the picture smaller"
        ) from None
    except Image.UnidentifiedImageError:
        raise UserError(
            f"{path}: not a picture of a known kind ({', '.join(PICTURE_FORMATS)}); "
            "replace the file or take it out of the list"
        ) from None
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(_unreadable(path, error)) from None
        raise UserError(
            f"{path}: damaged or truncated picture ({error}); replace the file or take it out of the list"
        ) from None


def _turn(image: Image.Image, path: Path, *, exif: bool) -> Image.Image:
    """The picture upright as its EXIF tag says, or as stored: Pillow has turned TIFFs already."""
    if exif:
        try:
            return ImageOps.exif_transpose(image)
        except Exception as error:  # damaged tags fail in many ways
            raise UserError(f"{path}: damaged EXIF data ({error}); leave --exif out or mend it") from None
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(image.info.get("turned_by_tiff"))
    return image if undo is None else image.transpose(undo)


def _high_byte(image: Image.Image, path: Path) -> np.ndarray:
    """A grey picture of 16 bits as uint8 (H, W)."""
    values = np.array(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise UserError(
            f"{path}: pixels of kind {image.mode!r} ({values.min()}..{values.max()}) have no defined range; "
            "save the picture with 8 or 16 bits per channel"
        )
    return (values >> 8).astype(np.uint8)


def _unreadable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file; put it there or correct the path"
    return f"{path}: cannot be read ({error.strerror}); mend the file or its permissions"
