"""Sizes that fit: published ones with images enough, fewer with fewer, and numbers as they are given."""

import pytest

from vqvae2.metrics.sizes import InfinitySizes, KernelSubsets, Neighbourhoods, Wanted, fitted

AUTO = Wanted("auto", KernelSubsets(100), InfinitySizes(15), Neighbourhoods())
PUBLISHED = Wanted(10, KernelSubsets(100, 1000), InfinitySizes(15, 5000, 50000), Neighbourhoods(3, 5))


def test_with_images_enough_they_are_the_published_ones_and_nothing_is_said():
    assert fitted(AUTO, samples=50000, sets=[50000], real=50000) == (PUBLISHED, [])
    assert fitted(AUTO, samples=60000, sets=[1000], real=50000) == (PUBLISHED, [])


def test_each_that_is_smaller_is_said_in_one_line():
    found, notes = fitted(AUTO, samples=300, sets=[42, 1], real=378)
    assert found == Wanted(10, KernelSubsets(100, 42), InfinitySizes(15, 60, 300), Neighbourhoods(3, 5))
    assert notes == [
        "images in a subset of KID: 42, not 1,000, because there are not more images.",
        "samples of FID-infinity: 300, not 50,000, because there are not more images.",
    ]
    found, notes = fitted(AUTO, samples=4, sets=[], real=90)
    assert found == Wanted(4, KernelSubsets(100, 4), InfinitySizes(15, 2, 4), Neighbourhoods(3, 3))
    assert len(notes) == 4
    found, notes = fitted(AUTO, samples=2, sets=[], real=2)
    assert found == Wanted(2, KernelSubsets(100, 2), None, Neighbourhoods(1, 1))
    assert notes[-1].startswith("FID-infinity is left out")


def test_numbers_that_are_given_stay():
    given = Wanted(7, KernelSubsets(3, 900), InfinitySizes(4, 50, 400), Neighbourhoods(9, 8))
    assert fitted(given, samples=20, sets=[20], real=20) == (given, [])
    mixed, _ = fitted(Wanted(7, KernelSubsets(3, 900)), samples=20, sets=[20], real=20)
    assert mixed.kid.subset_size == 900


def test_what_auto_needs_at_least_and_what_numbers_need():
    assert AUTO.least() == {
        "fid": 2, "is": 1, "kid": 2, "fid_infinity": 0,
        "precision": 2, "recall": 2, "density": 2, "coverage": 2,
    }  # fmt: skip
    assert PUBLISHED.least() == {
        "fid": 2, "is": 10, "kid": 1000, "fid_infinity": 50000,
        "precision": 6, "recall": 6, "density": 6, "coverage": 6,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(0), "splits is 0, wanted at least 1, or auto"),
        (Wanted(10, KernelSubsets(0)), r"kid.subsets is 0, wanted 1 to 1,000,000"),
        (Wanted(10, KernelSubsets(10**13)), r"kid.subsets is 10000000000000"),
        (Wanted(10, KernelSubsets(9, 1)), r"kid.subset_size is 1, wanted at least 2"),
        (Wanted(10, fid_infinity=InfinitySizes(1, 5, 9)), "through 1 points from 5 to 9 .* at most 5"),
        (Wanted(10, fid_infinity=InfinitySizes(10**13)), "through 10000000000000 points"),
        (Wanted(10, fid_infinity=InfinitySizes(6, 5, 9)), "at most 5"),
        (Wanted(10, fid_infinity=InfinitySizes(2, 9, 9)), "through 2 points from 9 to 9"),
        (Wanted(10, fid_infinity=InfinitySizes(2, 1, 9)), r"fid_infinity.smallest is 1, wanted at least 2"),
        (Wanted(10, manifold=Neighbourhoods(0, 5)), r"manifold.k_precision is 0, wanted at least 1"),
    ],
)
def test_sizes_that_no_images_could_be_enough_for_are_refused(wanted, message):
    with pytest.raises(ValueError, match=message):
        wanted.check()


def test_what_can_be_computed_is_not_refused():
    for wanted in (AUTO, PUBLISHED, Wanted(1, KernelSubsets(1, 2), InfinitySizes(5, 5, 9))):
        wanted.check()
