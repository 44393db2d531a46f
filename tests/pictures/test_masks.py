"""Masks: which codes they leave, and what the generated ones hide."""

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2.pictures.masks import GeneratedMask, black_and_white, kept_codes
from vqvae2.pixels import ImageSize

SIZE = ImageSize(32, 48)
GRID = (4, 6)  # of patches of 8x8


def drawn(shape, size=SIZE, **options):
    return GeneratedMask(shape, **options).drawn(size, GRID)


@pytest.mark.parametrize("grids", [[(4, 6), (8, 12), (16, 24)], [(8, 12)]], ids=["3 levels", "1 level"])
@pytest.mark.parametrize("share", [0.004, 0.05, 0.4])
def test_a_code_stays_if_every_pixel_that_it_covers_does(grids, share):
    mask = torch.rand(*SIZE, generator=torch.Generator().manual_seed(0)) < share
    for rows, columns in grids:
        down, across = SIZE.height // rows, SIZE.width // columns
        found = kept_codes(mask, (rows, columns))
        assert found.shape == (rows, columns)
        for r in range(rows):
            for c in range(columns):
                covered = [
                    bool(mask[r * down + i, c * across + j]) for i in range(down) for j in range(across)
                ]
                assert bool(found[r, c]) == (not any(covered))


def test_one_hidden_pixel_takes_one_code_of_each_level():
    mask = torch.zeros(*SIZE, dtype=torch.bool)
    mask[15, 16] = True
    for grid, place in (((4, 6), [1, 2]), ((8, 12), [3, 4]), ((32, 48), [15, 16])):
        assert (~kept_codes(mask, grid)).nonzero().tolist() == [place]


def test_block_and_ring_hide_the_middle_and_the_rest():
    block = drawn("block", share=0.25)
    wanted = torch.zeros(*SIZE, dtype=torch.bool)
    wanted[8:24, 12:36] = True
    assert torch.equal(block, wanted)
    assert torch.equal(drawn("ring", share=0.75), ~wanted)


def test_stripes_are_as_wide_as_asked_and_cover_the_share():
    assert drawn("stripes", share=0.5).all(1).view(4, 8).all(1).tolist() == [False, True, False, True]
    fine = drawn("stripes", share=0.25, cell=4)
    assert torch.equal(fine.any(1), fine.all(1))
    assert fine.all(1).view(8, 4).all(1).nonzero().squeeze(1).tolist() == [3, 7]


def test_random_squares_hide_whole_codes_of_the_top_level_unless_told_otherwise():
    mask = drawn("pixels", share=0.5)
    patches = mask.view(4, 8, 6, 8).float().mean((1, 3))
    assert patches.unique().tolist() == [0, 1]
    assert patches.sum() == 12
    assert torch.equal(mask, drawn("pixels", share=0.5))
    assert not torch.equal(mask, drawn("pixels", share=0.5, seed=1))
    single = drawn("pixels", share=0.1, cell=1)
    assert single.sum() == round(0.1 * 32 * 48)
    odd = drawn("pixels", share=0.5, cell=5)  # 7 by 10 squares, cut at the edges
    assert odd.shape == SIZE
    assert torch.equal(odd[:5, :5], odd[:1, :1].expand(5, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.0}, "mask.share is 0.0, wanted a fraction"),
        ({"share": 1.0}, "mask.share is 1.0, wanted a fraction"),
        ({"cell": 0}, "mask.cell is 0, wanted at least 1"),
        ({"seed": -1}, "mask.seed is -1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GeneratedMask("pixels", **options)


def test_only_black_and_white_is_a_mask():
    values = np.zeros((4, 4), np.uint8)
    values[1:3] = 255
    grey = Image.fromarray(values)
    for image in (grey, grey.convert("1"), grey.convert("RGB"), grey.convert("P")):
        assert np.array_equal(np.asarray(black_and_white(image, "a.png")), values)
    values[0, 0] = 1
    with pytest.raises(ValueError, match=r"a\.png has the values 0, 1, 255, wanted black \(0: keep\)"):
        black_and_white(Image.fromarray(values), "a.png")
