"""Sizes as options and files have them."""

import pytest

from vqvae2.pixels import ImageSize, size_of, written


@pytest.mark.parametrize(
    ("option", "height", "width", "file"),
    [(32, 32, 32, 32), ([192, 320], 192, 320, [192, 320]), ((3, 1), 3, 1, [3, 1]), ([8, 8], 8, 8, 8)],
)
def test_sizes_are_the_side_of_squares_or_height_and_width(option, height, width, file):
    size = size_of(option)
    assert (size.height, size.width) == (height, width)
    assert written(size) == file
    assert type(written(size)) is type(file)
    assert size_of(written(size)) == ImageSize(height, width)


@pytest.mark.parametrize(
    "option",
    [0, -8, [1], [], [0, 8], [8, -1], [8, 8, 8], "x", "88", None, 1.5, [8.0, 8], True, [True, 8], {8: 8}],
)
def test_what_is_no_size_is_refused_with_what_was_found(option):
    with pytest.raises(ValueError) as error:
        size_of(option)
    assert str(error.value).startswith(f"image_size is {option!r}, wanted the side of square images")
