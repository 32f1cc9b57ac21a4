"""Files: what is read from good and bad ones, and what stands on disk after writing."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from wsss import io
from wsss.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)
GREY = RNG.integers(0, 256, (9, 13), dtype=np.uint8)


def save(path, array_or_image, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return path


def write_png(path, bits, colour_type, rows, extra=b""):
    """A PNG of any bit depth, packed by hand: Pillow writes few of them."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, packed = rows
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in packed))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    return path


# ------------------------------------------------------------------------------- what becomes of pictures


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_colour_is_read_as_stored(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", COLOUR, **({"lossless": True} if suffix == "webp" else {}))
    result = io.read_image(path)
    assert result.dtype == np.uint8
    assert result.flags.writeable
    np.testing.assert_array_equal(result, COLOUR)


def test_content_and_not_suffix_tells_the_format(tmp_path):
    path = save(tmp_path / "a.JPG", COLOUR, format="PNG")
    np.testing.assert_array_equal(io.read_image(path), COLOUR)


def test_jpeg_equals_pillow(tmp_path):
    path = save(tmp_path / "a.jpg", COLOUR)
    np.testing.assert_array_equal(io.read_image(path), np.array(Image.open(path)))


def test_grey_and_one_bit_get_three_equal_channels(tmp_path):
    np.testing.assert_array_equal(
        io.read_image(save(tmp_path / "grey.png", GREY)), np.stack([GREY, GREY, GREY], axis=2)
    )
    one_bit = io.read_image(save(tmp_path / "bit.png", GREY > 99))
    np.testing.assert_array_equal(one_bit, np.repeat(np.where(GREY > 99, 255, 0)[..., None], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_keeps_the_high_byte(tmp_path, suffix):
    values = RNG.integers(0, 65536, (9, 13)).astype(np.uint16)
    path = save(tmp_path / f"a.{suffix}", values)
    assert Image.open(path).mode == "I;16"
    np.testing.assert_array_equal(io.read_image(path), np.repeat((values // 256)[..., None], 3, axis=2))


def test_sixteen_bit_colour_keeps_the_high_byte(tmp_path):
    values = RNG.integers(0, 65536, (4, 5, 3))
    path = write_png(tmp_path / "a.png", 16, 2, (4, 5, [row.astype(">u2").tobytes() for row in values]))
    np.testing.assert_array_equal(io.read_image(path), values // 256)


def test_alpha_is_laid_over_white(tmp_path):
    rgba = np.dstack([COLOUR, np.zeros((9, 13), np.uint8)])
    rgba[:4, :, 3] = 255
    result = io.read_image(save(tmp_path / "a.png", rgba))
    np.testing.assert_array_equal(result[:4], COLOUR[:4])
    assert (result[4:] == 255).all()
    half = np.array([[[100, 200, 0, 128]]], np.uint8)
    expected = np.array([100, 200, 0]) * 128 / 255 + 255 * (1 - 128 / 255)
    assert np.abs(io.read_image(save(tmp_path / "b.png", half))[0, 0] - expected).max() <= 1


def test_grey_with_alpha_is_laid_over_white(tmp_path):
    image = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(np.uint8(GREY > 99) * 255)])
    result = io.read_image(save(tmp_path / "a.png", image))
    np.testing.assert_array_equal(result, np.repeat(np.where(GREY > 99, GREY, 255)[..., None], 3, axis=2))


def test_palette_gives_its_colours_and_transparency_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    plain = io.read_image(save(tmp_path / "a.png", image))
    assert plain.tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    holes = io.read_image(save(tmp_path / "b.png", image, transparency=1))
    assert holes.tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    soft = io.read_image(save(tmp_path / "c.png", image, transparency=bytes([255, 255, 0])))
    assert soft.tolist() == [[[10, 20, 30], [40, 50, 60], [255, 255, 255]]]


def test_one_colour_declared_transparent_becomes_white(tmp_path):
    colours = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    result = io.read_image(save(tmp_path / "a.png", Image.fromarray(colours), transparency=(4, 5, 6)))
    assert result.tolist() == [[[1, 2, 3], [255, 255, 255]]]


def test_cmyk_is_converted(tmp_path):
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))  # full cyan, no other ink
    assert np.abs(io.read_image(save(tmp_path / "a.jpg", image))[8, 8].astype(int) - [0, 255, 255]).max() <= 3
    assert io.read_image(save(tmp_path / "a.tif", image))[8, 8].tolist() == [0, 255, 255]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_only_when_asked(tmp_path, suffix, orientation):
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:8, :16] = 255  # the top left quarter
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(stored), exif=exif)
    np.testing.assert_array_equal(io.read_image(path) > 127, stored > 127)
    # The tag's definition: which side the stored first row, and first column, are to be shown at.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    np.testing.assert_array_equal(io.read_image(path, exif=True) > 127, upright > 127)


@pytest.mark.parametrize("shape", [(1, 3000), (3000, 1), (1, 1)])
def test_thin_pictures(tmp_path, shape):
    assert io.read_image(save(tmp_path / "a.png", np.zeros((*shape, 3), np.uint8))).shape == (*shape, 3)


def test_phone_photograph_is_read_without_warning(tmp_path, recwarn):
    path = save(tmp_path / "a.jpg", Image.new("L", (4000, 3000)))
    assert io.read_image(path).shape == (3000, 4000, 3)
    assert not recwarn.list


# ------------------------------------------------------------------------------------------- bad pictures


def refusal(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    return str(caught.value)


def test_missing_empty_folder_and_text(tmp_path):
    assert refusal(io.read_image, tmp_path / "no.jpg").startswith(f"{tmp_path / 'no.jpg'}: no such file")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    for name in ("empty.jpg", "text.jpg"):
        assert refusal(io.read_image, tmp_path / name).startswith(f"{tmp_path / name}: not a picture")
    assert str(tmp_path) in refusal(io.read_image, tmp_path)


def test_formats_outside_the_list_are_refused(tmp_path):
    path = save(tmp_path / "a.png", GREY, format="GIF")
    assert "not a picture of a known kind" in refusal(io.read_image, path)


SAVES = {
    "jpg": {},
    "progressive.jpg": {"progressive": True},
    "png": {},
    "bmp": {},
    "webp": {},
    "tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("name", SAVES)
def test_truncated_anywhere_is_refused_or_complete(tmp_path, name):
    """Cut at many places: either the line names the file, or nothing of the picture was missing."""
    path = save(tmp_path / f"a.{name}", RNG.integers(0, 256, (64, 80, 3), dtype=np.uint8), **SAVES[name])
    whole, data = io.read_image(path), path.read_bytes()
    refused = 0
    for cut in sorted({*range(1, len(data), max(1, len(data) // 60)), len(data) - 1, len(data) - 2}):
        path.write_bytes(data[:cut])
        try:
            result = io.read_image(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(result, whole, err_msg=f"cut at {cut} of {len(data)}")
    assert refused >= 55


def test_damaged_bytes_never_escape_as_another_exception(tmp_path):
    rng = np.random.default_rng(1)
    for name, options in SAVES.items():
        path = save(tmp_path / f"a.{name}", COLOUR, **options)
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            broken = data.copy()
            broken[rng.integers(0, len(data), 5)] = rng.integers(0, 256, 5)
            path.write_bytes(broken.tobytes())
            try:
                assert io.read_image(path).dtype == np.uint8
            except UserError as error:
                assert str(path) in str(error)


def test_absurdly_big_is_refused_before_it_is_decoded(tmp_path):
    path = write_png(tmp_path / "bomb.png", 8, 2, (60_000, 60_000, [b""]))
    assert "more than 178 million pixels" in refusal(io.read_image, path)
    header_only = write_png(tmp_path / "large.png", 8, 0, (9_000, 12_000, [b""]))  # 108 million: allowed
    assert "truncated" in refusal(io.read_image, header_only)


@pytest.mark.parametrize("values", [np.float32([[0.5, 1]]), np.int32([[-1, 5]]), np.int32([[0, 70_000]])])
def test_pixels_without_a_range_are_refused(tmp_path, values):
    assert "no defined range" in refusal(io.read_image, save(tmp_path / "a.tif", values))


# -------------------------------------------------------------------------------------------------- masks


def test_palette_is_vocs():
    """Colours as VOC documents them, background and void (255) included."""
    colours = np.frombuffer(io.VOC_PALETTE, np.uint8).reshape(256, 3)
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 8: (64, 0, 0)}
    known |= {15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    for index, colour in known.items():
        assert tuple(colours[index]) == colour
    assert len({tuple(c) for c in colours}) == 256


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int32, bool])
def test_mask_round_trip(tmp_path, dtype):
    mask = np.arange(256).reshape(16, 16).astype(dtype)
    path = tmp_path / "new" / "folder" / "a.png"
    io.write_mask(path, mask)
    result = io.read_mask(path)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, mask.astype(np.uint8))
    with Image.open(path) as image:
        assert image.mode == "P"
        assert bytes(image.getpalette()) == io.VOC_PALETTE
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "bad", [[[0, 256]], [[-1, 0]], [[0.0, 1.0]], [[[1, 2, 3]]], [1, 2], np.zeros((0, 4), int)]
)
def test_unfit_masks_are_not_written(tmp_path, bad):
    with pytest.raises(ValueError):
        io.write_mask(tmp_path / "a.png", np.array(bad))
    assert list(tmp_path.iterdir()) == []


def test_masks_of_every_depth(tmp_path):
    np.testing.assert_array_equal(io.read_mask(save(tmp_path / "l.png", GREY)), GREY)
    np.testing.assert_array_equal(io.read_mask(save(tmp_path / "1.png", GREY > 99)), (GREY > 99).astype(int))
    np.testing.assert_array_equal(io.read_mask(save(tmp_path / "16.png", GREY.astype(np.uint16))), GREY)
    few = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    few.putpalette(io.VOC_PALETTE[:12])
    assert io.read_mask(save(tmp_path / "p2.png", few, bits=2)).tolist() == [[0, 1, 2, 3]]


def test_grey_masks_of_two_and_four_bits_give_the_stored_numbers(tmp_path):
    two = write_png(tmp_path / "2.png", 2, 0, (1, 4, [bytes([0b00011011])]))
    four = write_png(tmp_path / "4.png", 4, 0, (1, 4, [bytes([0x01, 0x5F])]))
    assert io.read_mask(two).tolist() == [[0, 1, 2, 3]]
    assert io.read_mask(four).tolist() == [[0, 1, 5, 15]]


def test_unfit_masks_are_refused(tmp_path):
    rgba = np.dstack([COLOUR, GREY])
    for name, array in {"rgb.png": COLOUR, "rgba.png": rgba}.items():
        assert "not a map of class indices" in refusal(io.read_mask, save(tmp_path / name, array))
    assert "compression changes" in refusal(io.read_mask, save(tmp_path / "a.jpg", GREY))
    large = save(tmp_path / "large.png", GREY.astype(np.uint16) + 256)
    assert f"holds the value {int(GREY.max()) + 256}" in refusal(io.read_mask, large)
    assert refusal(io.read_mask, tmp_path / "none.png").startswith(f"{tmp_path / 'none.png'}: no such file")


# ----------------------------------------------------------------------------------- writing, text, JSON


def test_write_image_round_trip(tmp_path):
    io.write_image(tmp_path / "a.png", COLOUR)
    np.testing.assert_array_equal(io.read_image(tmp_path / "a.png"), COLOUR)
    smooth = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 32, 3))
    io.write_image(tmp_path / "a.JPG", smooth)
    assert np.abs(io.read_image(tmp_path / "a.JPG").astype(int) - smooth).max() <= 4
    for path, image in [("a.gif", COLOUR), ("b.png", GREY), ("b.png", COLOUR / 255)]:
        with pytest.raises(ValueError):
            io.write_image(tmp_path / path, image)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.JPG", "a.png"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    io.write_text(path, "old")
    with pytest.raises(OSError, match="disk"), io.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "data",
    [
        b"a b\nc\n",
        b"a b\r\nc\r\n",
        b"a b\rc",
        b"\xef\xbb\xbfa b\nc",
        b"\n  \n  a b \t\n\r\nc\n\n",
    ],
    ids=["unix", "windows", "old mac", "bom", "blanks"],
)
def test_lines(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    assert io.read_lines(tmp_path / "a.txt") == ["a b", "c"]


def test_line_numbers_count_blank_lines_and_only_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\r\n\r\nb\x0bc\n")
    assert io.read_numbered_lines(tmp_path / "a.txt") == [(1, "a"), (3, "b\x0bc")]


def test_decomposed_letters_are_composed(tmp_path):
    (tmp_path / "a.txt").write_text("Ku\u0308he\n", encoding="utf8")
    assert io.read_lines(tmp_path / "a.txt") == ["K\u00fche"]


def test_wrong_encodings_are_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nK\xfche\n")
    assert refusal(io.read_lines, path).startswith(f"{path}, line 2: not UTF-8")
    path.write_text("a\n", encoding="utf-16")
    assert "UTF-16" in refusal(io.read_lines, path)
    assert "no such file" in refusal(io.read_lines, tmp_path / "b.txt")


def test_json_round_trip_with_numpy_paths_and_nan(tmp_path):
    path = tmp_path / "a.json"
    value = {"iou": np.array([0.5, np.nan]), "n": np.int64(3), 7: tmp_path, "t": (1, np.inf), "ü": None}
    io.write_json(path, value)
    expected = {"iou": [0.5, None], "n": 3, "7": str(tmp_path), "t": [1, None], "ü": None}
    assert json.loads(path.read_text("utf8")) == io.read_json(path) == expected


def test_bad_json_is_named_with_its_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1,\n"b": }')
    assert refusal(io.read_json, path).startswith(f"{path}, line 2: not valid JSON")
    path.write_text("[" * 100_000)
    assert str(path) in refusal(io.read_json, path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_size_from_the_header_is_that_of_the_pixels(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (6, 4)).save(tmp_path / f"a{suffix}", exif=exif)
    assert io.read_size(tmp_path / f"a{suffix}") == (4, 6) == io.read_image(tmp_path / f"a{suffix}").shape[:2]


def test_size_needs_no_whole_picture(tmp_path):
    Image.effect_noise((600, 400), 90).save(path := tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:5000])
    assert io.read_size(path) == (400, 600)
    with pytest.raises(UserError, match="damaged or truncated"):
        io.read_image(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="not a picture of a known kind"):
        io.read_size(path)
