"""How codes are drawn at the ends of the options, and where codes are equally likely."""

import math

import pytest
import torch

from vqvae2.sampling.draw import Draw, draw

NUM_DRAWS = 2000


def drawn(logits, how):
    """The codes that are drawn at all, over uniforms that lie evenly."""
    uniforms = (torch.arange(NUM_DRAWS, dtype=torch.float64) + 0.5) / NUM_DRAWS
    rows = torch.tensor(logits, dtype=torch.float64).expand(NUM_DRAWS, -1)
    return draw(rows, uniforms, how).unique().tolist()


@pytest.mark.parametrize(
    ("logits", "k", "expected"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], 1, [0]),
        ([1.0, 1.0, 1.0, 1.0, 1.0], 3, [0, 1, 2]),
        ([0.0, 1.0, 0.0, 2.0, 0.0], 3, [0, 1, 3]),
        ([0.0, 1.0, 0.0, 2.0, 0.0], 4, [0, 1, 2, 3]),
        ([0.0, 1.0, 0.0, 2.0, 0.0], 5, [0, 1, 2, 3, 4]),
    ],
)
def test_exactly_k_codes_are_kept_and_of_equal_ones_the_lowest(logits, k, expected):
    assert drawn(logits, Draw(top_k=k)) == expected


def test_exactly_k_of_very_many_equal_codes_are_kept():
    """Sorting that is not stable gives another order from a few dozen elements on."""
    assert drawn([0.0] * 512, Draw(top_k=100)) == list(range(100))
    assert drawn([0.0] * 512, Draw(top_p=0.25)) == list(range(128))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (Draw(temperature=5e-324), [1]),  # the least number above 0: logits over it would be infinite
        (Draw(temperature=1e-305), [1]),
        (Draw(temperature=1e300), [0, 1, 2, 3]),
        (Draw(top_p=5e-324), [1]),
        (Draw(top_p=1.0), [0, 1, 2, 3]),
        (Draw(top_k=4, top_p=1.0), [0, 1, 2, 3]),
        (Draw(temperature=5e-324, top_k=1, top_p=5e-324), [1]),
    ],
)
def test_options_at_their_ends(how, expected):
    how.check(4)
    assert drawn([700.0, 702.0, 699.0, 698.0], how) == expected


@pytest.mark.parametrize("temperature", [math.inf, math.nan, 0.0, -0.0])
def test_temperatures_that_are_none_are_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*, wanted above 0, finite"):
        Draw(temperature).check(4)


def test_of_one_code_there_is_one_to_draw():
    assert drawn([3.0], Draw(0.5, top_k=1, top_p=0.1)) == [0]
