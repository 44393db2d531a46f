import numpy as np
import pytest
from PIL import Image

from tests.pictures.raw_files import encode, tiff
from vqvae2.pictures.decode import open_image, to_rgb


def grey(encoded):
    return np.asarray(to_rgb(open_image(encoded)))[..., 1]


@pytest.mark.parametrize("file_type", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bits_are_scaled_not_cut(file_type):
    values = np.arange(0, 65536, 13, dtype=np.uint16)[:5000].reshape(50, 100)
    expected = (values.astype(int) * 2 + 257) // 514  # v / 257, rounded, in whole numbers
    assert np.array_equal(grey(encode(Image.fromarray(values), file_type)), expected)


@pytest.mark.parametrize("file_type", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_a_dark_picture_of_sixteen_bits_stays_dark(file_type):
    values = np.full((40, 40), 255, np.uint16)
    values[0, 0] = 0
    assert grey(encode(Image.fromarray(values), file_type)).max() == 1


def test_netpbm_names_its_white():
    assert grey(b"P2\n4 1\n1000\n0 250 600 1000\n").tolist() == [[0, 64, 153, 255]]
    assert grey(b"P5\n3 1\n15\n\0\5\x0f").tolist() == [[0, 85, 255]]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_both_senses_of_grey_at_16_bits(order, white_is_zero):
    values = np.array([[0, 1000, 30000, 65535], [257, 514, 0, 1]], order + "u2")
    expected = [[0, 4, 117, 255], [1, 2, 0, 0]]
    found = grey(tiff(values, 0 if white_is_zero else 1))
    assert found.tolist() == [[255 - v if white_is_zero else v for v in row] for row in expected]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_white_is_zero_at_few_bits(bits):
    packed = np.array([[0b00011011, 0b11100100]], np.uint8)
    numbers = [int(f"{0b0001101111100100:016b}"[i : i + bits], 2) for i in range(0, 16, bits)]
    expected = [255 - round(n * 255 / (2**bits - 1)) for n in numbers]
    assert grey(tiff(packed, 0, bits=bits)).tolist() == [expected]


def test_white_is_zero_in_a_compressed_tiff():
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    encoded = encode(Image.fromarray(values), "TIFF", compression="tiff_lzw", tiffinfo={262: 0})
    assert np.array_equal(grey(encoded), 255 - np.arange(256).reshape(16, 16))


def test_the_white_of_12_bits_is_4095():
    assert grey(tiff(np.array([[0xFF, 0xF8, 0x00]], np.uint8), 1, bits=12)).tolist() == [[255, 128]]


def floats(*values):
    return tiff(np.float32([values]), 1, sample_format=3)


def test_floats_go_from_0_to_1_and_overshoot_is_clipped():
    values = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    expected = [[int(v * 255 + 0.5) for v in row] for row in values.astype(float)]
    assert grey(encode(Image.fromarray(values), "TIFF")).tolist() == expected
    assert grey(floats(0, 0.2, 1, 1.004)).tolist() == [[0, 51, 255, 255]]
    assert grey(floats(-0.1, 0.4, 1.3)).tolist() == [[0, 102, 255]]
    assert grey(floats(0, 0.004, 0.002)).tolist() == [[0, 1, 1]]  # dark stays dark
    assert grey(tiff(np.float32([[0, 0.2, 1.004]]), 0, sample_format=3)).tolist() == [[255, 204, 0]]


@pytest.mark.parametrize(
    "values", [(0, 1.6), (0, 255), (-0.6, 1), (np.nan, 0), (0, np.inf), (-np.inf, 1), (np.nan, 300)]
)
def test_floats_of_another_scale_are_refused_with_their_range(values):
    low, high = (f"{np.float32(pick):g}" for pick in (np.min(values), np.max(values)))
    with pytest.raises(OSError, match=f"from {low} to {high}, wanted 0 \\(black\\) to 1"):
        open_image(floats(*values))


@pytest.mark.parametrize("top", [1, 255, 65535, 70000])
@pytest.mark.parametrize("kind", ["<u4", "<i4", "<i2", "<i1"])
def test_numbers_without_a_known_white_are_refused_whatever_they_are(kind, top):
    most = min(top, np.iinfo(kind).max)
    with pytest.raises(OSError, match=f"here from 0 to {most}: nothing says which one is white"):
        open_image(tiff(np.array([[0, most]], kind), 1, sample_format=1 if kind == "<u4" else 2))
