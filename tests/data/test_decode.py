import io

import numpy as np
import pytest
from PIL import Image

from vqvae2.data.decode import fit_image, open_image, to_channels, to_pixels, to_rgb


def encode(image, name, **options):
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


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


@pytest.mark.parametrize("file_type", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(file_type):
    values = np.arange(0, 65536, 13, dtype=np.uint16)[:5000].reshape(50, 100)
    decoded = rgb(open_image(encode(Image.fromarray(values), file_type)))
    expected = (values.astype(int) * 2 + 257) // 514  # v / 257, rounded, in whole numbers
    assert np.array_equal(decoded[..., 0], expected)
    assert np.array_equal(rgb(Image.fromarray(values.astype(np.int32)))[..., 2], expected)


def test_floats_are_taken_as_up_to_one_or_up_to_255():
    values = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    expected = [[int(v * 255 + 0.5) for v in row] for row in values.astype(float)]
    assert np.array_equal(rgb(Image.fromarray(values))[..., 0], expected)
    assert np.array_equal(rgb(Image.fromarray(np.float32([[0, 3.4, 254.6]])))[0, :, 0], [0, 3, 255])


@pytest.mark.parametrize(
    "pixels", [np.float32([[-1, 0]]), np.float32([[np.nan, 0]]), np.float32([[0, 300]]), np.int32([[70000]])]
)
def test_pixels_of_unknown_scale_are_refused(pixels):
    with pytest.raises(ValueError, match="grey values"):
        to_rgb(Image.fromarray(pixels))


def test_one_channel_is_luma(noise):
    pixels = noise[..., :3]
    expected = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(np.asarray(to_channels(Image.fromarray(pixels), 1)) - expected).max() <= 1
    grey = Image.fromarray(noise[..., 0])
    assert np.array_equal(to_pixels(to_channels(grey, 1))[0], noise[..., 0])


@pytest.mark.parametrize("file_type", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
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
    for file_type in ("JPEG", "PNG", "BMP", "TIFF", "GIF"):
        data = np.frombuffer(encode(Image.fromarray(noise[..., :3]), file_type), np.uint8)
        for _ in range(150):
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


def test_pad_centres_on_black_without_resizing(noise):
    fitted = np.asarray(fit_image(Image.fromarray(noise[..., 0]), 32, "pad"))
    expected = np.pad(noise[..., 0], ((6, 6), (1, 1)))
    assert np.array_equal(fitted, expected)


def test_pad_shrinks_only_what_is_too_large(noise):
    fitted = np.asarray(fit_image(Image.new("L", (64, 32), 200), 32, "pad"))
    assert np.array_equal(fitted, np.pad(np.full((16, 32), 200), ((8, 8), (0, 0))))


def test_crop_resizes_the_short_side():
    tall = fit_image(Image.new("RGB", (50, 80)), 25, "crop")
    wide = fit_image(Image.new("RGB", (500, 333)), 256, "crop")
    assert tall.size == (25, 40)
    assert wide.size == (384, 256)


def test_shrinking_is_antialiased():
    """A fine chessboard shrunk fourfold is even grey; without a filter it would stay black or white."""
    board = np.indices((128, 128)).sum(0) % 2 * 255
    shrunk = np.asarray(fit_image(Image.fromarray(board.astype(np.uint8)), 32, "crop")).astype(int)
    assert np.abs(shrunk[2:-2, 2:-2] - 127.5).max() <= 2
