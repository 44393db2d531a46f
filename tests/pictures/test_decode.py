import itertools
import struct
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image, features

from tests.pictures.raw_files import encode, orientation
from vqvae2.pictures.decode import (
    FORMATS,
    IMAGE_SUFFIXES,
    Strip,
    fit_image,
    open_image,
    to_channels,
    to_pixels,
    to_rgb,
)
from vqvae2.pixels import ImageSize


def rgb(image):
    return np.asarray(to_rgb(image))


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)


def test_grey_bits_and_palette_become_their_colours(noise):
    grey = noise[..., 0]
    assert np.array_equal(rgb(Image.fromarray(grey)), np.repeat(grey[..., None], 3, 2))

    bits = Image.fromarray(grey > 127)
    assert bits.mode == "1"
    assert np.array_equal(rgb(bits)[..., 1], np.where(grey > 127, 255, 0))

    palette = Image.fromarray(grey % 4, "L")
    palette.putpalette([0, 0, 0, 255, 0, 0, 1, 2, 3, 9, 8, 7])
    colours = np.array([[0, 0, 0], [255, 0, 0], [1, 2, 3], [9, 8, 7]])
    assert np.array_equal(rgb(palette), colours[grey % 4])


def test_alpha_is_laid_over_white(noise):
    share = noise[..., 3:] / 255
    expected = noise[..., :3] * share + 255 * (1 - share)
    assert np.abs(rgb(Image.fromarray(noise)) - expected).max() <= 1

    expected = noise[..., :1] * share + 255 * (1 - share)
    assert np.abs(rgb(Image.fromarray(noise[..., [0, 3]])) - expected).max() <= 1


def test_a_transparent_colour_becomes_white(noise):
    pixels = noise[..., :3].copy()
    pixels[3:6, 4:9] = (7, 77, 177)
    decoded = rgb(open_image(encode(Image.fromarray(pixels), "PNG", transparency=(7, 77, 177))))
    hidden = (pixels == (7, 77, 177)).all(-1, keepdims=True)
    assert np.array_equal(decoded, np.where(hidden, 255, pixels))

    palette = Image.fromarray(noise[..., 0] % 4, "L")
    palette.putpalette([0, 0, 0, 255, 0, 0, 1, 2, 3, 9, 8, 7])
    decoded = rgb(open_image(encode(palette, "PNG", transparency=2)))
    colours = np.array([[0, 0, 0], [255, 0, 0], [255, 255, 255], [9, 8, 7]])
    assert np.array_equal(decoded, colours[noise[..., 0] % 4])


def test_cmyk_jpeg(noise):
    ink = Image.fromarray(np.broadcast_to(np.array([200, 30, 90, 40], np.uint8), (16, 16, 4)).copy(), "CMYK")
    decoded = rgb(open_image(encode(ink, "JPEG", quality=100)))
    expected = (255 - np.array([200, 30, 90])) * (255 - 40) / 255
    assert np.abs(decoded - expected).max() <= 3  # JPEG is lossy


def test_one_channel_is_luma(noise):
    pixels = noise[..., :3]
    expected = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(np.asarray(to_channels(Image.fromarray(pixels), 1)) - expected).max() <= 1
    grey = Image.fromarray(noise[..., 0])
    assert np.array_equal(to_pixels(to_channels(grey, 1))[0], noise[..., 0])


@pytest.mark.parametrize("file_type", FORMATS)
def test_missing_pixels_are_an_error(noise, file_type):
    data = encode(Image.fromarray(noise[..., :3]), file_type)
    assert open_image(data).size == (30, 20)
    for length in (0, 1, len(data) // 4, len(data) // 2, len(data) - 60):
        with pytest.raises(OSError):
            open_image(data[:length])


@pytest.mark.filterwarnings("ignore")
def test_damage_of_any_kind_is_an_os_error(noise):
    """Only OSError may come out, whatever bytes go in."""
    generator = np.random.default_rng(1)
    outcomes = set()
    for file_type in FORMATS:
        data = np.frombuffer(encode(Image.fromarray(noise[..., :3]), file_type), np.uint8)
        for _ in range(80):
            damaged = data.copy()
            damaged[generator.integers(0, min(len(data), 300), 4)] = generator.integers(0, 256, 4)
            try:
                open_image(damaged.tobytes())
                outcomes.add("read")
            except OSError:
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_postscript_in_disguise_is_not_opened():
    with pytest.raises(OSError, match="not an image"):
        open_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")


SIDEWAYS = {  # EXIF 2.3, tag 0x0112: where row 0 and column 0 of the file are to be shown
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


@pytest.fixture
def corners():
    """Four blocks of different brightness: no symmetry, and lossy compression does not matter."""
    return np.kron(np.array([[0, 80], [160, 240]]), np.ones((8, 16))).astype(np.uint8)


@pytest.mark.parametrize("turn", SIDEWAYS)
@pytest.mark.parametrize("file_type", ["JPEG", "MPO", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_read_upright(file_type, turn, corners):
    exif = Image.Exif()
    exif[0x0112] = turn
    found = rgb(open_image(encode(Image.fromarray(corners), file_type, exif=exif, quality=100)))
    wanted = SIDEWAYS[turn](corners)
    assert found.shape[:2] == wanted.shape
    assert np.abs(found[..., 1].astype(int) - wanted).max() < 12


def test_an_orientation_beside_odd_or_damaged_exif(corners):
    """Another field that cannot be written again does not matter; what cannot be read says nothing."""
    data = encode(Image.fromarray(corners), "JPEG")

    def with_exif(exif):
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif + data[2:]

    odd = orientation(6)
    odd = odd[:8] + b"\0\2" + odd[10:22] + struct.pack(">HHII", 0x0103, 4, 1, 2**32 - 1) + odd[22:]
    assert open_image(with_exif(odd)).size == (16, 32)
    assert open_image(with_exif(b"no such byte order")).size == (32, 16)
    assert open_image(with_exif(orientation(9))).size == (32, 16)


def test_sixteen_bits_and_transparency_are_turned_as_well():
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.array([[0, 1000, 65535]], np.uint16)
    found = rgb(open_image(encode(Image.fromarray(grey), "PNG", transparency=1000, exif=exif)))
    assert found[..., 0].tolist() == [[0], [255], [255]]


def test_the_first_frame_of_an_animation_is_the_picture():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    for file_type in ("PNG", "GIF", "TIFF", "WEBP", "AVIF"):
        found = rgb(open_image(encode(frames[0], file_type, save_all=True, append_images=frames[1:])))
        assert np.abs(found[3, 3].astype(int) - [255, 0, 0]).max() < 9


def test_pictures_of_every_ending_can_be_read():
    """Pillow knows the endings; MPO is two JPEGs in one file, and the endings of bits and greys are PPM's."""
    assert features.check("avif")
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in IMAGE_SUFFIXES} == {*FORMATS, "MPO"}


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_alpha(mode):
    """Half of white, stored as 128 with an alpha of 128, over white is white."""
    image = Image.new(mode, (2, 2), (128,) * len(mode))
    assert (rgb(image) == 255).all()


def test_pad_centres_on_black_without_resizing(noise):
    fitted = np.asarray(fit_image(Image.fromarray(noise[..., 0]), ImageSize(32, 32), "pad"))
    expected = np.pad(noise[..., 0], ((6, 6), (1, 1)))
    assert np.array_equal(fitted, expected)


def test_pad_shrinks_only_what_is_too_large(noise):
    fitted = np.asarray(fit_image(Image.new("L", (64, 32), 200), ImageSize(32, 32), "pad"))
    assert np.array_equal(fitted, np.pad(np.full((16, 32), 200), ((8, 8), (0, 0))))


def test_crop_resizes_the_short_side():
    tall = fit_image(Image.new("RGB", (50, 80)), ImageSize(25, 25), "crop")
    wide = fit_image(Image.new("RGB", (500, 333)), ImageSize(256, 256), "crop")
    assert tall.size == (25, 40)
    assert wide.size == (384, 256)


def test_shrinking_is_antialiased():
    """A fine chessboard shrunk fourfold is even grey; without a filter it would stay black or white."""
    board = np.indices((128, 128)).sum(0) % 2 * 255
    shrunk = np.asarray(fit_image(Image.fromarray(board.astype(np.uint8)), ImageSize(32, 32), "crop")).astype(
        int
    )
    assert np.abs(shrunk[2:-2, 2:-2] - 127.5).max() <= 2


def plainly_fitted(image, size, fit):
    """The size that an image gets: tries both sides as the one that decides."""
    tried = [Fraction(size.width, image.width), Fraction(size.height, image.height)]
    if fit == "crop":  # as small as can be with both sides covered
        scale = next(
            s for s in sorted(tried) if s * image.width >= size.width and s * image.height >= size.height
        )
    else:  # as large as can be within, but not enlarged
        inside = [s for s in tried if s * image.width <= size.width and s * image.height <= size.height]
        scale = min(1, max(inside))
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


SIZES = [ImageSize(16, 32), ImageSize(32, 16), ImageSize(5, 40), ImageSize(24, 24)]
SHAPES = [(20, 40), (40, 20), (33, 31), (16, 32), (7, 50), (8, 9), (64, 64), (3, 5), (31, 16), (100, 41)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_size_is_covered_or_padded_as_a_plain_search_says(shape, size):
    """Against every place of the result, pixel by pixel."""
    pixels = np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)
    image = Image.fromarray(pixels)
    covered = fit_image(image, size, "crop")
    assert np.array_equal(np.asarray(covered), np.asarray(plainly_fitted(image, size, "crop")))
    assert covered.height >= size.height
    assert covered.width >= size.width
    within = np.asarray(plainly_fitted(image, size, "pad"))
    wanted = np.zeros((size.height, size.width), np.uint8)
    top, left = (size.height - within.shape[0]) // 2, (size.width - within.shape[1]) // 2
    for row, column in np.ndindex(within.shape):
        wanted[top + row, left + column] = within[row, column]
    assert np.array_equal(np.asarray(fit_image(image, size, "pad")), wanted)


@pytest.mark.parametrize("shape", [(300, 3), (2, 77), (70, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_squares_of_a_strip_are_those_of_the_whole_enlargement(shape, channels):
    """All of it, made by Pillow in one piece, against squares of it, from one end to the other."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = to_channels(Image.fromarray(pixels), channels)
    strip = fit_image(image, ImageSize(16, 16), "crop")
    _, height, width = strip.shape
    whole = to_pixels(image.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    assert whole.shape == strip.shape
    assert min(height, width) == 16
    for top, left in itertools.product(range(0, height - 15, 7), range(0, width - 15, 7)):
        square = strip.crop(top, left, ImageSize(16, 16))
        assert np.abs(square - whole[:, top : top + 16, left : left + 16]).max() <= 1


@pytest.mark.parametrize("size", [ImageSize(8, 24), ImageSize(24, 8)], ids=str)
@pytest.mark.parametrize("shape", [(700, 3), (2, 277), (270, 2)])
def test_other_crops_of_a_strip_are_those_of_the_whole_enlargement(shape, size):
    """Pillow may enlarge a part's height before its width, and rounds and clips between: either is right."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    strip = fit_image(image, size, "crop")
    assert isinstance(strip, Strip)
    _, height, width = strip.shape
    assert height == size.height or width == size.width
    wholes = [
        np.asarray(
            image.resize(first, Image.Resampling.BICUBIC).resize((width, height), Image.Resampling.BICUBIC)
        )
        for first in ((width, image.height), (image.width, height))
    ]
    tops, lefts = range(0, height - size.height + 1, 37), range(0, width - size.width + 1, 37)
    for top, left in itertools.product(tops, lefts):
        found = strip.crop(top, left, size)[0].astype(int)
        parts = [whole[top : top + size.height, left : left + size.width] for whole in wholes]
        assert min(np.abs(found - part).max() for part in parts) <= 1


def test_only_what_would_become_far_too_large_is_a_strip():
    assert isinstance(fit_image(Image.new("L", (1, 20_000)), ImageSize(256, 256), "crop"), Strip)
    assert isinstance(fit_image(Image.new("L", (60_000, 3)), ImageSize(256, 256), "crop"), Strip)
    for size in [(10, 160), (300, 30_000), (32, 600)]:  # up to 16 squares; shrunk; as it is
        assert isinstance(fit_image(Image.new("L", size), ImageSize(32, 32), "crop"), Image.Image)
    assert fit_image(Image.new("L", (1, 20_000)), ImageSize(256, 256), "pad").size == (256, 256)
