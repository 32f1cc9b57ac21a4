"""Prediction against its plain form: one window, one scale and one mirror at a time, and explicit means."""

from fractions import Fraction

import cv2
import numpy as np
import pytest
import torch

from segmentation.inference import (
    FIRST_BLOCK_WEIGHT,
    PUBLISHED_SCALES,
    Protocol,
    enlarged_size,
    predict_probs,
    resized_size,
    sliding_window_logits,
    sliding_window_probs,
    window_starts,
)
from segmentation.segmenter import build_segmenter
from tests.segmentation.oracle import (
    pictures,
    plain_bilinear,
    plain_starts,
    plain_window_probs,
    random_tensor,
)
from wsss.errors import UserError

CLASSES = 4
SMALL = {"window": 24, "stride": 16}  # patches of 8, and a window that is no power of two


@pytest.fixture(scope="module")
def model():
    """Random weights, such that pixels differ in their class and windows disagree where they overlap."""
    network = build_segmenter("vit_micro_patch8_96", num_classes=CLASSES, image_size=24)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(random_tensor(name, tuple(parameter.shape)))
    return network.eval()


def photo(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def assert_probs(found, expected, total=1.0):
    """Equal, and distributions: they add up to 1, of both decoder blocks to 1.8."""
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5
    assert (found.sum(-3) - total).abs().max() <= 1e-5
    assert found.min() >= 0
    assert found.std() > 0.05  # nothing is compared that is flat anyway


# ----------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("side", "window", "stride", "expected"),
    [
        (480, 480, 320, [0]),
        (481, 480, 320, [0, 1]),
        (800, 480, 320, [0, 320]),
        (801, 480, 320, [0, 320, 321]),
        (693, 480, 320, [0, 213]),
        (1440, 480, 320, [0, 320, 640, 960]),
        (1441, 480, 320, [0, 320, 640, 960, 961]),
        (10, 10, 10, [0]),
        (20, 10, 10, [0, 10]),
        (25, 10, 10, [0, 10, 15]),
    ],
)
def test_window_starts_by_hand(side, window, stride, expected):
    assert window_starts(side, window, stride) == expected


def test_windows_cover_every_pixel_and_stay_inside():
    for window in (1, 2, 5, 8):
        for stride in range(1, window + 1):
            for side in range(window, 40):
                starts = window_starts(side, window, stride)
                assert starts == plain_starts(side, window, stride)
                assert starts == sorted(set(starts)), "a window twice"
                covered = {at + i for at in starts for i in range(window)}
                assert covered == set(range(side))
                assert starts[-1] + window == side
                assert all(at % stride == 0 for at in starts[:-1])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 480), (480, 480)),
        ((480, 900), (480, 900)),
        ((1000, 600), (1000, 600)),
        ((260, 347), (480, 640)),  # 640.6: the long side is truncated
        ((347, 260), (640, 480)),
        ((479, 480), (480, 481)),  # 481.002
        ((479, 479), (480, 480)),
        ((240, 999), (480, 1997)),  # 999 / 240 * 480 is just below 1998 in floating point, as published
        ((1, 3), (480, 1440)),
    ],
)
def test_enlarged_size_by_hand(size, expected):
    assert enlarged_size(size, 480) == expected


def test_resized_size_rounds_half_up_and_keeps_the_long_side_to_8_times():
    assert resized_size((375, 500), 520) == (520, 693)  # 693.33
    assert resized_size((4, 9), 2) == (2, 5)  # 4.5
    assert resized_size((4, 5), 2) == (2, 3)  # 2.5
    assert resized_size((500, 333), 520, 0.5) == (390, 260)  # 390.39
    assert resized_size((500, 333), 520, 1.75) == (1366, 910)  # 1366.37, from the original: not 1.75 * 781
    assert resized_size((100, 800), 520) == (520, 4160)
    assert resized_size((100, 801), 520) == (519, 4160)  # 519.35
    assert resized_size((3, 3000), 520, 0.5) == (2, 2080)
    for size in np.random.default_rng(0).integers(1, 2000, (200, 2)).tolist():
        for ratio in PUBLISHED_SCALES:
            target = 520 * Fraction(ratio)
            factor = min(target / min(size), 8 * target / max(size))
            exact = tuple(max(1, int(side * factor + Fraction(1, 2))) for side in size)
            assert resized_size(tuple(size), 520, ratio) == exact


def test_published_numbers():
    assert PUBLISHED_SCALES == (0.5, 0.75, 1, 1.25, 1.5, 1.75)
    assert FIRST_BLOCK_WEIGHT == 0.8
    assert Protocol() == Protocol(
        short_side=520,
        scales=(1.0,),
        flip=False,
        window=480,
        stride=320,
        window_batch=8,
        decoder_blocks="last",
    )


# --------------------------------------------------------------------------------------------- windows


WINDOW_SIZES = [
    (24, 24),  # one window
    (25, 24), (24, 25), (25, 25),  # one more pixel: the last window overlaps almost all of the first
    (40, 56),  # the last windows are flush by themselves
    (41, 57),
    (24, 71),
    (15, 37),  # enlarged to (24, 59): 59.2
    (37, 15),
    (3, 4),
]  # fmt: skip


@pytest.mark.parametrize("size", WINDOW_SIZES)
def test_windows_equal_the_plain_form(model, size):
    image = pictures(1, 3, *size)
    with torch.no_grad():
        expected = plain_window_probs(model, image[0], **SMALL, output_size=(31, 45))
    found = sliding_window_probs(model, image, **SMALL, output_size=(31, 45))
    assert_probs(found, expected[None])


@pytest.mark.parametrize("decoder_block", [1, 2, None])
@pytest.mark.parametrize("flipped", [False, True])
def test_mirror_batch_and_decoder_block(model, flipped, decoder_block):
    """A batch of two is two singles; what was given mirrored comes back as it was before."""
    images = pictures(2, 3, 30, 41)
    found = sliding_window_probs(
        model, images, flipped=flipped, **SMALL, output_size=(30, 41), decoder_block=decoder_block
    )
    with torch.no_grad():
        expected = [
            plain_window_probs(
                lambda crop: model(crop, decoder_block=decoder_block),
                image,
                **SMALL,
                output_size=(30, 41),
                flipped=flipped,
            )
            for image in images
        ]
    assert_probs(found, torch.stack(expected))
    assert (found[0] - found[1]).abs().max() > 0.1


def test_mirror_goes_back_after_the_windows(model):
    """(H, W - 1 - x) of the mirrored picture's result, whose windows lie elsewhere than the picture's."""
    image = pictures(1, 3, 24, 45)
    mirrored = sliding_window_probs(model, image.flip(3), flipped=True, **SMALL, output_size=(24, 45))
    plain = sliding_window_probs(model, image.flip(3), **SMALL, output_size=(24, 45))
    assert (mirrored - plain.flip(3)).abs().max() <= 1e-6
    assert (mirrored - sliding_window_probs(model, image, **SMALL, output_size=(24, 45))).abs().max() > 0.01


@pytest.mark.parametrize("window_batch", [1, 5, 7, 8, 100])
def test_windows_at_a_time_have_no_effect(model, window_batch):
    """18 windows of two pictures."""
    images = pictures(2, 3, 41, 56)
    sizes = []
    with torch.no_grad():
        hook = model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        found = sliding_window_probs(model, images, **SMALL, output_size=(41, 56), window_batch=window_batch)
        hook.remove()
        expected = sliding_window_probs(model, images, **SMALL, output_size=(41, 56), window_batch=3)
    assert (found - expected).abs().max() <= 1e-5  # last digits depend on the batch's size on some processors
    windows = 2 * 3 * 3
    full, rest = divmod(windows, window_batch)
    assert sizes == [window_batch] * full + [rest] * (rest > 0)


def test_window_that_is_no_multiple_of_the_patch(model):
    image = pictures(1, 3, 33, 50)
    with torch.no_grad():
        expected = plain_window_probs(model, image[0], window=21, stride=13, output_size=(33, 50))
    assert_probs(
        sliding_window_probs(model, image, window=21, stride=13, output_size=(33, 50)), expected[None]
    )


@pytest.mark.parametrize("output_size", [(1, 1), (7, 90), (60, 30), [24, 40]])
def test_any_output_size(model, output_size):
    image = pictures(1, 3, 24, 40)
    with torch.no_grad():
        expected = plain_window_probs(model, image[0], **SMALL, output_size=output_size)
    found = sliding_window_probs(model, image, **SMALL, output_size=output_size)
    assert (found - expected).abs().max() <= 1e-5


def test_published_window_and_stride_are_the_defaults(model):
    """500 x 820 has 2 x 3 windows; short sides below 480 are enlarged."""

    class Recorder(torch.nn.Module):
        num_classes, decoder = 2, model.decoder

        def forward(self, images, decoder_block=None):
            crops.extend(tuple(crop.shape[1:]) for crop in images)
            return images[:, :2]

    for size, windows in (((500, 820), 6), ((480, 480), 1), ((240, 300), 2)):
        crops = []
        sliding_window_probs(Recorder(), pictures(1, 3, *size), output_size=size)
        assert crops == [(480, 480)] * windows


@pytest.mark.parametrize("number", [0, 3, -1])
def test_unknown_decoder_block_is_refused(model, number):
    with pytest.raises(ValueError, match=f"decoder_block {number}"):
        sliding_window_probs(model, pictures(1, 3, 24, 24), **SMALL, output_size=(9, 9), decoder_block=number)


def test_both_blocks_come_from_one_encoder_pass(model):
    passes = []
    hook = model.encoder.register_forward_hook(lambda *_: passes.append(1))
    how = SMALL | {"window_batch": 100}
    images = pictures(1, 3, 40, 40)
    with torch.no_grad():
        both = sliding_window_logits(model, images, **how, decoder_blocks=[1, 2])
        assert len(passes) == 1
        for number, logits in enumerate(both, 1):
            single = sliding_window_logits(model, images, **how, decoder_blocks=[number])[0]
            assert (logits - single).abs().max() <= 1e-5 * single.abs().max()
    hook.remove()


def test_result_carries_no_gradient_and_the_input_is_kept(model):
    image = pictures(1, 3, 30, 41)
    before = image.clone()
    assert not sliding_window_probs(model, image, flipped=True, **SMALL, output_size=(30, 41)).requires_grad
    assert torch.equal(image, before)


# ---------------------------------------------------------------------------------- scales and mirrors


def plain_prediction(model, image, *, short_side, scales, flip, window, stride, blocks, output_size=None):
    """Step by step, float64: resize, normalise, mirror, windows, softmax; mean; weights of the blocks."""
    height, width = image.shape[:2]
    result = torch.zeros(())
    for block, weight in blocks:
        views = []
        for scale in scales:
            target = Fraction(short_side) * Fraction(scale)
            factor = min(target / min(height, width), 8 * target / max(height, width))
            h, w = (max(1, int(side * factor + Fraction(1, 2))) for side in (height, width))
            resized = cv2.resize(image, (w, h), interpolation=cv2.INTER_LINEAR)
            pixels = np.zeros((3, h, w), np.float32)
            for c in range(3):  # vit: levels 127.5
                pixels[c] = (resized[..., c] - 127.5) / 127.5
            for mirrored in (False, True) if flip else (False,):
                given = pixels[:, :, ::-1].copy() if mirrored else pixels
                views.append(
                    plain_window_probs(
                        lambda crop, block=block: model(crop, decoder_block=block),
                        torch.from_numpy(given),
                        window=window,
                        stride=stride,
                        output_size=output_size or (height, width),
                        flipped=mirrored,
                    )
                )
        result = result + weight * sum(views) / len(views)
    if output_size:
        result = plain_bilinear(result, (height, width))
    return result


BLOCKS = {"last": [(2, 1.0)], "fused": [(1, 0.8), (2, 1.0)]}


@pytest.mark.parametrize("decoder_blocks", ["last", "fused"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.75)])
def test_prediction_equals_the_plain_form(model, scales, flip, decoder_blocks):
    image = photo(33, 47)
    protocol = Protocol(short_side=26, scales=scales, flip=flip, **SMALL, decoder_blocks=decoder_blocks)
    with torch.no_grad():
        expected = plain_prediction(
            model, image, short_side=26, scales=scales, flip=flip, **SMALL, blocks=BLOCKS[decoder_blocks]
        )
    before = image.copy()
    found = predict_probs(model, image, protocol)
    assert found.shape == (CLASSES, 33, 47)
    assert_probs(found, expected, 1.8 if decoder_blocks == "fused" else 1)
    assert np.array_equal(image, before) and not found.requires_grad


def test_order_of_scales_and_windows_at_a_time_have_no_effect(model):
    image = photo(40, 30)
    how = {"short_side": 26, "flip": True, **SMALL, "decoder_blocks": "fused"}
    first = predict_probs(model, image, Protocol(scales=(0.5, 1.25), window_batch=1, **how))
    other = predict_probs(model, image, Protocol(scales=(1.25, 0.5), window_batch=8, **how))
    assert (first - other).abs().max() <= 1e-6


def test_mirrored_picture_gives_the_mirrored_prediction(model):
    """With mirrors, as the mean is over both; without, as windows lie elsewhere, it does not."""
    image = photo(40, 57)
    for flip in (True, False):
        protocol = Protocol(short_side=26, flip=flip, **SMALL)
        found = predict_probs(model, np.ascontiguousarray(image[:, ::-1]), protocol).flip(2)
        difference = (found - predict_probs(model, image, protocol)).abs().max()
        assert (difference <= 1e-5) == flip


@pytest.mark.parametrize(
    ("max_side", "made_at"),
    [(None, None), (47, None), (1000, None), (46, (32, 46)), (38, (27, 38)), (1, (1, 1))],
)
@pytest.mark.parametrize("decoder_blocks", ["last", "fused"])
def test_max_side(model, max_side, made_at, decoder_blocks):
    """Probabilities are made at the smaller size and enlarged; the network sees the same pixels."""
    image = photo(33, 47)
    protocol = Protocol(short_side=26, flip=True, **SMALL, decoder_blocks=decoder_blocks)
    with torch.no_grad():
        expected = plain_prediction(
            model,
            image,
            short_side=26,
            scales=(1.0,),
            flip=True,
            **SMALL,
            blocks=BLOCKS[decoder_blocks],
            output_size=made_at,
        )
    found = predict_probs(model, image, protocol, max_side=max_side)
    assert found.shape == (CLASSES, 33, 47)
    assert (found - expected).abs().max() <= 1e-5
    assert (found.sum(0) - (1.8 if decoder_blocks == "fused" else 1)).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [(20, 1), (1, 9), (1, 1), (2, 3)])
def test_pictures_a_pixel_wide(model, size):
    """20 x 1 goes to 128 x 6 (8 times 16), and is enlarged to 512 x 24."""
    image = photo(*size)
    protocol = Protocol(short_side=16, flip=True, **SMALL)
    found = predict_probs(model, image, protocol)
    assert found.shape == (CLASSES, *size) and found.isfinite().all()
    with torch.no_grad():
        expected = plain_prediction(
            model, image, short_side=16, scales=(1.0,), flip=True, **SMALL, blocks=BLOCKS["last"]
        )
    assert (found - expected).abs().max() <= 1e-5
    assert (found.sum(0) - 1).abs().max() <= 1e-5


def test_prediction_carries_the_networks_statistics(model):
    """Another mean is another prediction: they are read from the network."""
    image, protocol = photo(33, 47), Protocol(short_side=26, **SMALL)
    expected = predict_probs(model, image, protocol)
    mean = model.pixel_mean
    try:
        model.pixel_mean = (0.485, 0.456, 0.406)
        assert (predict_probs(model, image, protocol) - expected).abs().max() > 1e-3
    finally:
        model.pixel_mean = mean
    assert torch.equal(predict_probs(model, image, protocol), expected)


def test_windows_of_any_network_are_averaged():
    """A function of windows in place of a segmenter: the mean of what it says about each pixel."""

    class Stub(torch.nn.Module):
        def forward(self, images):
            return torch.stack(
                (images[:, 0], images.mean((1, 2, 3))[:, None, None].expand_as(images[:, 0])), 1
            )

    image = torch.rand(1, 3, 20, 27)
    how = {"window": 16, "stride": 10}
    probs = sliding_window_probs(Stub(), image, output_size=(20, 27), **how)
    means = torch.zeros(20, 27)
    counts = torch.zeros(20, 27)
    for y in (0, 4):
        for x in (0, 10, 11):
            means[y : y + 16, x : x + 16] += image[0, :, y : y + 16, x : x + 16].mean()
            counts[y : y + 16, x : x + 16] += 1
    expected = torch.stack((image[0, 0], means / counts)).softmax(0)
    torch.testing.assert_close(probs[0], expected)


def test_half_precision_is_close_and_its_probabilities_are_float32(model):
    image, protocol = photo(33, 47), Protocol(short_side=26, flip=True, **SMALL, decoder_blocks="fused")
    exact = predict_probs(model, image, protocol)
    rough = predict_probs(model, image, protocol, amp_dtype=torch.bfloat16)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().mean() < 0.01
    assert (rough.sum(0) - 1.8).abs().max() <= 1e-5


def test_values_that_are_not_finite_are_refused(model):
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.decoder = model, model.decoder
            self.pixel_mean, self.pixel_std = model.pixel_mean, model.pixel_std

        def forward(self, images, decoder_block=None):
            logits = self.inner(images, decoder_block)
            logits[:, 1, 3, 4] = float("nan")
            return logits

    with pytest.raises(UserError, match="not finite; check --checkpoint, or use --amp off"):
        predict_probs(Broken(), photo(33, 47), Protocol(short_side=26, **SMALL))
