# SPDX-License-Identifier: MIT
"""The statistics of bench/boot.py: what its verdict on a limit rests on."""

from __future__ import annotations

import pytest

from bench.boot import Ratio, median_interval, ratio, verdict


@pytest.mark.parametrize(
    ("count", "low", "high"),
    [(1, 1, 1), (5, 1, 5), (6, 1, 6), (10, 2, 9), (25, 8, 18), (30, 10, 21)],
)
def test_the_interval_is_that_of_the_sign_test(count: int, low: int, high: int) -> None:
    # Ranks from 1, as tables of the confidence interval of a median have them.
    first, last = median_interval(count)
    assert (first + 1, last + 1) == (low, high)


def test_a_ratio_is_taken_within_each_round() -> None:
    # The second round was slow for both: it does not count as noise.
    found = ratio([1.1, 11.0, 1.1, 1.1, 1.1, 1.1], [1.0, 10.0, 1.0, 1.0, 1.0, 1.0])
    assert found.low == pytest.approx(1.1)
    assert found.median == pytest.approx(1.1)
    assert found.high == pytest.approx(1.1)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (Ratio(1.04, 0.9, 1.2), "kept"),
        (Ratio(1.06, 1.04, 1.2), "not decided"),
        (Ratio(1.08, 1.06, 1.2), "missed"),
    ],
)
def test_a_limit_is_missed_only_if_the_whole_interval_is_above(found: Ratio, told: str) -> None:
    assert verdict(found, 1.05) == told
