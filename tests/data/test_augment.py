import colorsys

import numpy as np
import pytest
import torch

from vqvae2.data.augment import (
    Augment,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    centre_crop,
    hsv_to_rgb,
    move,
    recolour,
    rgb_to_hsv,
    sample_generator,
    shifted,
)
from vqvae2.pixels import ImageSize

FFHQ = Augment(brightness=0.08, hue=0.02, saturation=0.1, contrast=0.1, noise_probability=0.5, noise_std=0.02)


@pytest.fixture
def picture():
    """Random colours, with the special ones (black, white, grey, primaries, ties) in the first row."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 6, 9, generator=generator, dtype=torch.float64)
    special = [
        (0, 0, 0),
        (1, 1, 1),
        (0.5,) * 3,
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
        (0, 1, 1),
        (1, 0, 1),
    ]
    image[:, 0] = torch.tensor(special, dtype=torch.float64).T
    return image


def pixelwise(function, image):
    """Applies a function of three numbers to every pixel: the slow reference."""
    pixels = [function(*pixel) for pixel in image.flatten(1).T.tolist()]
    return torch.tensor(pixels, dtype=image.dtype).T.reshape(image.shape)


def test_hsv_is_colorsys(picture):
    hsv = pixelwise(colorsys.rgb_to_hsv, picture)
    torch.testing.assert_close(rgb_to_hsv(picture), hsv, atol=1e-12, rtol=0)
    torch.testing.assert_close(hsv_to_rgb(hsv), picture, atol=1e-12, rtol=0)
    torch.testing.assert_close(rgb_to_hsv(picture.expand(2, 3, 6, 9))[1], hsv, atol=1e-12, rtol=0)


@pytest.mark.parametrize("turns", [-0.3, 0.02, 0.5])
def test_hue_is_shifted_in_turns(picture, turns):
    def reference(*rgb):
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)

    torch.testing.assert_close(adjust_hue(picture, turns), pixelwise(reference, picture), atol=1e-12, rtol=0)


@pytest.mark.parametrize("factor", [0.0, 0.9, 1.7])
def test_saturation_is_multiplied_and_clipped(picture, factor):
    def reference(*rgb):
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value)

    expected = pixelwise(reference, picture)
    torch.testing.assert_close(adjust_saturation(picture, factor), expected, atol=1e-12, rtol=0)


def test_brightness_is_added_and_contrast_keeps_each_channels_mean(picture):
    assert torch.equal(adjust_brightness(picture, 0.08), picture + 0.08)
    result = adjust_contrast(picture, 0.9)
    for channel in range(3):
        mean = picture[channel].mean()
        expected = (picture[channel] - mean) * 0.9 + mean
        torch.testing.assert_close(result[channel], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("option", ["brightness", "hue", "saturation", "contrast"])
def test_each_change_is_drawn_evenly_from_its_range(option):
    """What was drawn is measured in the result; a uniform draw has mean 0, fills ±d, and a flat histogram."""
    half_width = {"brightness": 0.08, "hue": 0.02, "saturation": 0.1, "contrast": 0.1}[option]
    start = torch.tensor([0.6, 0.4, 0.3]).view(3, 1, 1).repeat(1, 2, 2)
    start[:, 0] += 0.1
    measure = {
        "brightness": lambda image: image[0, 0, 0] - start[0, 0, 0],
        "hue": lambda image: rgb_to_hsv(image)[0, 0, 0] - rgb_to_hsv(start)[0, 0, 0],
        "saturation": lambda image: rgb_to_hsv(image)[1, 0, 0] / rgb_to_hsv(start)[1, 0, 0] - 1,
        "contrast": lambda image: (image[0, 0, 0] - image[0, 1, 0]) / 0.1 - 1,
    }[option]
    augment = Augment(**{option: half_width})
    drawn = np.array(
        [float(measure(recolour(start, augment, sample_generator(0, 0, i)))) for i in range(1000)]
    )
    relative = drawn / half_width
    assert np.abs(relative).max() < 1.0001
    assert np.abs(relative).max() > 0.98
    counts, _ = np.histogram(relative, bins=10, range=(-1, 1))
    assert (np.abs(counts - 100) < 40).all()  # four standard deviations


def test_noise_comes_to_half_the_images_with_its_standard_deviation():
    augment = Augment(noise_probability=0.5, noise_std=0.02)
    grey = torch.full((3, 16, 16), 0.5)
    changes = [recolour(grey, augment, sample_generator(3, 1, i)) - 0.5 for i in range(400)]
    noisy = [change for change in changes if change.abs().max() > 0]
    assert abs(len(noisy) - 200) < 40
    values = torch.cat(noisy).flatten()
    assert abs(float(values.std()) - 0.02) < 2e-4
    assert abs(float(values.mean())) < 4e-4
    assert abs(float((values.abs() < 0.02).float().mean()) - 0.6827) < 0.01


def test_everything_together_is_the_definitions_in_their_order(picture):
    """The draws are read off the same generator; then the reference applies them by hand."""
    image = picture.float()
    generator = sample_generator(5, 6, 7)
    added, turn, saturation, contrast = generator.uniform(-1, 1, 4)
    expected = adjust_saturation(adjust_hue(image + 0.08 * added, 0.02 * turn), 1 + 0.1 * saturation)
    mean = expected.mean((1, 2), keepdim=True)
    expected = (expected - mean) * (1 + 0.1 * contrast) + mean
    if generator.random() < 0.5:
        expected = expected + 0.02 * torch.from_numpy(generator.standard_normal((3, 6, 9), dtype=np.float32))
    result = recolour(image, FFHQ, sample_generator(5, 6, 7))
    torch.testing.assert_close(result, expected.clamp(0, 1), atol=1e-6, rtol=0)
    assert result.min() >= 0
    assert result.max() <= 1


def test_draws_depend_on_seed_epoch_and_sample_alone():
    def draw(*numbers):
        return tuple(sample_generator(*numbers).random(3))

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(3, 2, 1), draw(1, 3, 2), draw(0, 2, 3), draw(1, 2, 4)}) == 5


def test_random_crops_reach_every_place_evenly():
    pixels = np.arange(7 * 9, dtype=np.uint8).reshape(1, 7, 9)
    crops = [
        move(pixels, ImageSize(5, 5), Augment(random_crop=True), sample_generator(0, 0, i))
        for i in range(3000)
    ]
    corners, counts = np.unique([crop[0, 0, 0] for crop in crops], return_counts=True)
    assert sorted(corners) == sorted(row * 9 + column for row in range(3) for column in range(5))
    assert (np.abs(counts - 200) < 60).all()
    for crop in crops[:20]:
        top, left = divmod(int(crop[0, 0, 0]), 9)
        assert np.array_equal(crop, pixels[:, top : top + 5, left : left + 5])


def test_flips_mirror_half_of_the_images():
    pixels = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    results = [
        move(pixels[:, :, :3], ImageSize(3, 3), Augment(flip=True), sample_generator(0, 0, i))
        for i in range(1000)
    ]
    mirrored = [np.array_equal(result, pixels[:, :, 2::-1]) for result in results]
    plain = [np.array_equal(result, pixels[:, :, :3]) for result in results]
    assert sum(mirrored) + sum(plain) == 1000
    assert abs(sum(mirrored) - 500) < 65


def test_shifts_move_whole_pixels_and_fill_with_black():
    pixels = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5)
    wide = np.pad(pixels, ((0, 0), (4, 4), (4, 4)))
    seen = set()
    for i in range(500):
        result = move(pixels, ImageSize(5, 5), Augment(shift=2), sample_generator(0, 0, i))
        (match,) = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if np.array_equal(result, wide[:, 4 - down : 9 - down, 4 - right : 9 - right])
        ]
        seen.add(match)
    assert len(seen) == 25
    assert np.array_equal(shifted(pixels, 4, -3), wide[:, 0:5, 7:12])


def test_the_centre_is_the_centre():
    pixels = np.zeros((1, 9, 13), np.uint8)
    pixels[0, 4, 6] = 1
    assert centre_crop(pixels, ImageSize(5, 5))[0, 2, 2] == 1
    wide = centre_crop(pixels, ImageSize(3, 9))
    assert wide.shape == (1, 3, 9)
    assert wide[0, 1, 4] == 1


def test_random_crops_of_images_that_are_not_square_reach_every_place():
    pixels = np.arange(7 * 9, dtype=np.uint8).reshape(1, 7, 9)
    size, augment = ImageSize(3, 8), Augment(random_crop=True)
    crops = [move(pixels, size, augment, sample_generator(0, 0, i)) for i in range(1000)]
    seen = {divmod(int(crop[0, 0, 0]), 9) for crop in crops}
    assert seen == {(top, left) for top in range(5) for left in range(2)}
    for crop in crops[:50]:
        top, left = divmod(int(crop[0, 0, 0]), 9)
        assert np.array_equal(crop, pixels[:, top : top + 3, left : left + 8])


@pytest.mark.parametrize(
    "options",
    [{"hue": 0.6}, {"brightness": -0.1}, {"noise_probability": 2}, {"shift": -1}, {"contrast": 1.5}],
)
def test_impossible_options_are_named(options):
    with pytest.raises(ValueError, match=f"augment.{next(iter(options))}"):
        Augment(**options)
