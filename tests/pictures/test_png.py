import struct
import zlib

import numpy as np
import pytest

from tests.pictures.raw_files import chunk, grey_profile, orientation, png
from vqvae2.pictures import png as subject
from vqvae2.pictures.decode import open_image, to_rgb


def rgb(encoded):
    return np.asarray(to_rgb(open_image(encoded)))


def key(*numbers):
    return chunk(b"tRNS", struct.pack(f">{len(numbers)}H", *numbers))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_is_white_at_every_depth(depth):
    """Of all greys in order; the key's upper bits are to be left alone, as the specification says."""
    greys = [0, 1] if depth == 1 else [0, 1, 2**depth - 2, 2**depth - 1]
    bits = "".join(f"{grey:0{depth}b}" for grey in greys)
    row = int(bits.ljust(-len(bits) % 8 + len(bits), "0"), 2).to_bytes(-(-len(bits) // 8))
    values = [round(grey * 255 / (2**depth - 1)) for grey in greys]
    for hidden, transparent in enumerate(greys):
        for upper in (0, 2**depth & 0xFFFF):
            found = rgb(png([row], len(greys), depth, 0, key(transparent | upper)))
            wanted = [255 if i == hidden else value for i, value in enumerate(values)]
            assert found[0, :, 0].tolist() == found[0, :, 2].tolist() == wanted


def test_the_transparent_colour_of_8_and_16_bits_is_compared_as_a_whole():
    near = [(1000, 2000, 3000), (1000, 2000, 3001), (1001, 2000, 3000), (60000, 2, 3)]
    found = rgb(png([np.array(near, ">u2").tobytes()], 4, 16, 2, key(1000, 2000, 3000)))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[0, 1:].tolist() == [[n >> 8 for n in colour] for colour in near[1:]]

    near = [(10, 20, 30), (10, 20, 31), (9, 20, 30)]
    found = rgb(png([bytes(sum(near, ()))], 3, 8, 2, key(10, 20, 30)))
    assert found[0].tolist() == [[255, 255, 255], [10, 20, 31], [9, 20, 30]]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_palette_entries_are_laid_over_white(depth):
    """The first entry is half transparent, the second wholly; others have no entry and are opaque."""
    palette = chunk(b"PLTE", bytes([0, 100, 200, 9, 9, 9]))
    row = bytes([0, 1]) if depth == 8 else bytes([1 << 8 - 2 * depth])
    found = rgb(png([row], 2, depth, 3, palette, chunk(b"tRNS", bytes([51, 0]))))
    wanted = [round(value * 0.2 + 255 * 0.8) for value in (0, 100, 200)]
    assert np.abs(found[0, 0].astype(int) - wanted).max() <= 1
    assert found[0, 1].tolist() == [255, 255, 255]


LONG = b"a" * 3_000_000
TEXTS = {
    "zTXt": chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG)),
    "iTXt": chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(LONG)),
    "many": chunk(b"zTXt", b"part\0\0" + zlib.compress(LONG[:1_000_000])) * 70,
    "damaged": chunk(b"tEXt", b"Comment\0hello")[:-1] + b"?",
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("place", ["before", "behind"])
def test_whole_pixels_beside_any_text_are_read(text, place):
    rows = [bytes(range(48)), bytes(range(48, 96))]
    more = [TEXTS[text]] if place == "before" else []
    turned = chunk(b"eXIf", orientation(3))  # is no text, and goes on to be heeded
    found = rgb(png(rows, 16, 8, 2, turned, *more, behind=b"" if more else TEXTS[text]))
    assert np.array_equal(found, np.arange(96).reshape(2, 16, 3)[::-1, ::-1])


def test_much_text_does_not_hide_a_colour_profile():
    """Of a gamma of 1: 20 of 255 as light is 79 in sRGB (IEC 61966-2-1)."""
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(grey_profile(1.0)))
    assert rgb(png([bytes([20, 255])], 2, 8, 0, profile, TEXTS["zTXt"]))[0, :, 0].tolist() == [79, 255]


def test_exif_as_text_turns_the_picture_if_it_can_be_read():
    rows = [bytes([1, 2, 3])]
    exif = b"Exif\0\0" + orientation(3)
    text = b"Raw profile type exif\0\nexif\n%8d\n" % len(exif)
    assert rgb(png(rows, 3, 8, 0, chunk(b"tEXt", text + exif.hex().encode())))[0, :, 0].tolist() == [3, 2, 1]
    assert rgb(png(rows, 3, 8, 0, chunk(b"tEXt", text + b"no numbers")))[0, :, 0].tolist() == [1, 2, 3]


def test_text_does_not_excuse_missing_pixels():
    whole = png([bytes(range(48))] * 16, 16, 8, 2, TEXTS["zTXt"])
    with pytest.raises(OSError):
        open_image(whole[: whole.index(b"IDAT") + 20])


def test_a_colour_profile_beyond_pillows_limit_is_told_of():
    profile = grey_profile(1.0) + bytes(3_000_000)
    told = []
    image = open_image(png([b"\1\2"], 2, 8, 0, chunk(b"iCCP", b"a\0\0" + zlib.compress(profile))))
    assert np.asarray(to_rgb(image, told.append))[0, :, 1].tolist() == [1, 2]
    assert len(told) == 1
    assert "profile" in told[0]


def test_decompression_bombs_are_refused_with_their_size():
    bomb = png([b""], 60_000, 8, 0)
    bomb = bomb[:16] + struct.pack(">II", 60_000, 60_000) + bomb[24:29]
    bomb += struct.pack(">I", zlib.crc32(bomb[12:29])) + chunk(b"IDAT", zlib.compress(bytes(9)))
    with pytest.raises(OSError, match="3600000000 pixels"):
        open_image(bomb)


def test_only_the_named_chunks_go():
    picture = png([b"\1\2"], 2, 8, 0, chunk(b"gAMA", bytes(4)), TEXTS["damaged"])
    assert subject.without(picture, subject.TEXT) == png([b"\1\2"], 2, 8, 0, chunk(b"gAMA", bytes(4)))
    assert subject.without(picture, frozenset()) == picture
