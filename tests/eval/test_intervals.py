"""Intervals against worked examples and scipy."""

import pytest

from torchmae.eval.intervals import few_images, paired_difference, t_quantile, wilson_interval


def test_the_interval_is_wilson_s() -> None:
    low, high = wilson_interval(81, 263)  # a worked example: 0.2553, 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == pytest.approx(1)


def test_the_interval_of_paired_differences() -> None:
    """Against scipy's t distribution."""
    from scipy import stats

    for degrees in (1, 4, 9, 10, 11, 20, 100):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=2e-3)
    ours, theirs = [0.9, 0.8, 0.85, 0.95], [0.5, 0.6, 0.55, 0.5]
    found = paired_difference(ours, theirs)
    exact = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-3)


def test_few_images_are_remarked_with_what_they_can_tell() -> None:
    assert few_images(100) is None
    assert "only 24 images to measure on: an accuracy of 50 % is known to ± 20 points" in str(
        few_images(24)
    )
    assert "only 1 image to" in str(few_images(1))
