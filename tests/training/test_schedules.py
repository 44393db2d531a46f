"""Learning rates: the papers' shapes, and numbers at the ends of their ranges."""

import math

import pytest

from vqvae2.training.schedules import Constant, Cosine, InverseSquareRoot


def test_the_papers_schedule():
    top, face = InverseSquareRoot(0.18, 16000, 0.5), InverseSquareRoot(0.324, 16000, 0.5)
    assert top.rate(16000, width=512, total_steps=0) == pytest.approx(6.29e-5, rel=1e-3)
    assert face.rate(16000, width=512, total_steps=0) == pytest.approx(1.132e-4, rel=1e-3)
    rates = [top.rate(step, width=512, total_steps=0) for step in (1, 8000, 15999, 16001, 64000)]
    assert rates[1] == pytest.approx(8000 * rates[0])
    assert max(rates[2], rates[3]) < top.rate(16000, width=512, total_steps=0)
    assert rates[4] == pytest.approx(6.29e-5 / 2, rel=1e-3)
    other = InverseSquareRoot(0.18, 16000, 0.35)  # the other reading of the scan: a switch at step 46,908
    assert other.rate(46908, width=512, total_steps=0) == pytest.approx(1.84e-4, rel=5e-3)
    assert max(other.rate(s, width=512, total_steps=0) for s in (46000, 48000)) < 1.845e-4


def test_a_cosine_without_an_end_is_refused():
    with pytest.raises(ValueError, match="max_steps"):
        Cosine(1.0).rate(1, width=1, total_steps=math.inf)


def test_cosine_warms_up_peaks_and_ends_at_zero():
    schedule = Cosine(2.0, warmup=10)
    rates = [schedule.rate(step, width=1, total_steps=110) for step in (5, 10, 60, 110)]
    assert rates == pytest.approx([1.0, 2.0, 1.0, 0.0])
    assert schedule.rate(111, width=1, total_steps=110) == schedule.rate(210, width=1, total_steps=110) == 0.0


def test_a_run_shorter_than_its_warm_up_only_rises():
    for schedule in (Cosine(2.0, warmup=10), InverseSquareRoot(2.0 * 10**0.5, 10, 0.5)):
        rates = [schedule.rate(step, width=1, total_steps=4) for step in (1, 2, 3, 4)]
        assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("total_steps", [10, 11])
def test_a_cosine_that_ends_with_its_warm_up_or_a_step_later(total_steps):
    schedule = Cosine(2.0, warmup=10)
    rates = [schedule.rate(step, width=1, total_steps=total_steps) for step in range(1, total_steps + 1)]
    assert rates == pytest.approx([0.2 * step for step in range(1, 11)] + [0.0] * (total_steps - 10))


def test_without_warm_up_rates_fall_from_the_first_step_on():
    root = [InverseSquareRoot(0.3, 0, 0.5).rate(step, width=9, total_steps=0) for step in (1, 4, 100)]
    assert root == pytest.approx([0.1, 0.05, 0.01])
    cosine = [Cosine(1.0, warmup=0).rate(step, width=9, total_steps=4) for step in (1, 2, 3, 4)]
    assert cosine == pytest.approx([(1 + math.cos(math.pi * step / 4)) / 2 for step in (1, 2, 3, 4)])


def test_a_warm_up_of_one_step_is_over_after_it():
    assert [Cosine(1.0, warmup=1).rate(s, width=1, total_steps=3) for s in (1, 2, 3)] == pytest.approx(
        [1.0, 0.5, 0.0]
    )
    assert [InverseSquareRoot(1.0, 1, 0.5).rate(s, width=4, total_steps=0) for s in (1, 4)] == pytest.approx(
        [0.5, 0.25]
    )


def test_a_power_of_zero_never_falls_and_a_large_one_underflows_to_zero():
    flat = InverseSquareRoot(1.0, 4, 0.0)  # rises to the 4^1.5 = 8th step
    assert [flat.rate(s, width=1, total_steps=0) for s in (4, 8, 10**7)] == pytest.approx([0.5, 1.0, 1.0])
    steep = InverseSquareRoot(1.0, 0, 2000.0)
    assert [steep.rate(s, width=1, total_steps=0) for s in (1, 2, 10**7)] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("schedule", [Constant(0.0), Cosine(0.0, warmup=3), InverseSquareRoot(0.0, 3, 0.5)])
def test_a_rate_of_zero_stays_zero(schedule):
    assert [schedule.rate(step, width=8, total_steps=5) for step in (1, 3, 5)] == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf])
@pytest.mark.parametrize(
    ("made", "options"),
    [
        (Constant, {"learning_rate": 1.0}),
        (Cosine, {"learning_rate": 1.0, "warmup": 1}),
        (InverseSquareRoot, {"scale": 1.0, "warmup": 1, "power": 0.5}),
    ],
)
def test_numbers_that_are_no_rates_are_refused_by_name(made, options, value):
    for name in options:
        with pytest.raises(ValueError, match=f"{name} of the schedule is {value}, wanted a finite number"):
            made(**{**options, name: value})
