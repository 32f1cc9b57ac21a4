"""Schedules against the published figures and their defining properties."""

import math
from itertools import pairwise

import pytest

from wsss.optim import published_stage1_rate, shifted_stage1_rate, warmup_cosine_rate

PEAK = 6e-4 * 64 / 512  # VOC12


def test_published_voc12_rates():
    rates = [published_stage1_rate(e, peak=PEAK, epochs=60) for e in range(60)]
    assert rates[0] == rates[1] == 1e-6
    assert rates[3] == pytest.approx(1e-6 + 2 * (PEAK - 1e-6) / 5)
    assert max(rates) == rates[6] == pytest.approx(7.389e-5, rel=1e-4)
    assert rates[59] == pytest.approx(1.018e-5, rel=1e-3)


def test_shifted_is_the_same_curve_one_epoch_earlier():
    for e in range(1, 60):
        expected = published_stage1_rate(e, peak=PEAK, epochs=60)
        assert shifted_stage1_rate(e - 1, peak=PEAK, epochs=60) == expected


def test_warmup_cosine():
    rates = [warmup_cosine_rate(i, peak=2.0, steps=100, warmup_steps=20) for i in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[19] == rates[20] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 + math.cos(math.pi * 79 / 80))
    assert rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(rates[20:]))
