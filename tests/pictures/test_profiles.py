import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.pictures.raw_files import (
    SRGB_PRIMARIES,
    chunk,
    cmyk_profile,
    encode,
    grey_profile,
    png,
    rgb_profile,
)
from vqvae2.data.images import ImageDataModule
from vqvae2.pictures.decode import open_image, to_channels, to_rgb


def seen(image, file_type, profile, channels=3):
    """The pixels of an image with a profile, [H, W, C], and what was told."""
    told = []
    found = to_channels(open_image(encode(image, file_type, icc_profile=profile)), channels, told.append)
    return np.asarray(found).astype(int), told


def of_light(light):
    """sRGB of linear light, 0 to 255 (IEC 61966-2-1)."""
    light = np.asarray(light)
    return 255 * np.where(
        light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055
    )


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)


@pytest.mark.parametrize(("file_type", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_colours_mean_what_their_profile_says(noise, file_type, options):
    colours = Image.fromarray(noise[..., :3])
    data = encode(colours, file_type, icc_profile=rgb_profile(1.0), **options)
    found = np.asarray(to_rgb(open_image(data))).astype(int)
    assert np.abs(found - of_light(noise[..., :3] / 255)).max() <= 1


def test_exchanged_primaries_exchange_the_colours():
    red, green, blue = SRGB_PRIMARIES
    found, told = seen(Image.new("RGB", (2, 2), (255, 0, 0)), "PNG", rgb_profile(2.2, (green, red, blue)))
    assert np.abs(found - [0, 255, 0]).max() <= 2
    assert not told


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_has_profiles_too(noise, channels):
    grey = noise[..., 0]
    found, told = seen(Image.fromarray(grey), "PNG", grey_profile(1.0), channels)
    wanted = of_light(grey / 255)
    assert np.abs(found - (wanted if channels == 1 else wanted[..., None])).max() <= 1

    found, told = seen(Image.fromarray(grey * np.uint16(257)), "PNG", grey_profile(1.0), channels)
    assert np.abs(found - (wanted if channels == 1 else wanted[..., None])).max() <= 1
    found, told = seen(Image.fromarray(grey), "PNG", rgb_profile(1.0), channels)
    assert np.abs(found - (wanted if channels == 1 else wanted[..., None])).max() <= 1
    assert not told


@pytest.mark.parametrize("file_type", ["JPEG", "TIFF"])
@pytest.mark.parametrize(("black", "lightness"), [(0, 100), (128, 100 * 127 / 255), (255, 0)])
def test_ink_means_what_its_profile_says(file_type, black, lightness):
    found, told = seen(Image.new("CMYK", (16, 16), (200, 30, 90, black)), file_type, cmyk_profile())
    light = ((lightness + 16) / 116) ** 3 if lightness > 8 else lightness / 903.3  # CIE 1976
    assert np.abs(found - of_light(light)).max() <= 3
    assert not told


def test_transparency_is_laid_over_white_in_srgb(noise):
    share = noise[..., 3:] / 255
    wanted = of_light(noise[..., :3] / 255) * share + 255 * (1 - share)
    found, _ = seen(Image.fromarray(noise), "PNG", rgb_profile(1.0))
    assert np.abs(found - wanted).max() <= 2
    wanted = of_light(noise[..., :1] / 255) * share + 255 * (1 - share)
    found, _ = seen(Image.fromarray(noise[..., [0, 3]]), "PNG", grey_profile(1.0))
    assert np.abs(found - wanted).max() <= 2

    palette = Image.fromarray(np.uint8([[0, 1, 2]]), "P")
    palette.putpalette([9, 9, 9, 55, 0, 0, 1, 2, 3])
    found, _ = seen(palette, "PNG", rgb_profile(1.0))
    assert np.abs(found[0] - of_light(np.array([[9, 9, 9], [55, 0, 0], [1, 2, 3]]) / 255)).max() <= 1


def test_a_profile_that_is_srgb_leaves_the_pixels_alone(noise):
    """Also one that is so up to its own rounding, as most that are in use; not one that is further off."""
    colours = Image.fromarray(noise[..., :3])
    srgb = ImageCms.createProfile("sRGB")
    for steps, least, most in ((4096, 0, 0), (24, 1, 2), (6, 9, 99)):
        drive = np.linspace(0, 1, steps)
        profile = rgb_profile(np.where(drive <= 0.04045, drive / 12.92, ((drive + 0.055) / 1.055) ** 2.4))
        by_it = ImageCms.profileToProfile(colours, ImageCms.ImageCmsProfile(io.BytesIO(profile)), srgb)
        by_it = np.asarray(by_it).astype(int)
        assert least <= np.abs(by_it - noise[..., :3]).max() <= most
        found, told = seen(colours, "PNG", profile)
        assert np.array_equal(found, noise[..., :3] if most <= 2 else by_it)
        assert not told


@pytest.mark.parametrize(("gamma", "power"), [(100_000, 1 / 2.2), (55_556, 1.8 / 2.2), (45_000, 1), (0, 1)])
def test_a_png_without_a_profile_has_its_gamma(gamma, power):
    """55556 is 1 / 1.8, as old Macintoshes had; 45000 is 1 / 2.2 up to 5 %, by which sRGB is meant."""
    said = chunk(b"gAMA", struct.pack(">I", gamma))
    colours = np.arange(96, dtype=np.uint8).reshape(2, 16, 3) * 2
    found = np.asarray(to_rgb(open_image(png([row.tobytes() for row in colours], 16, 8, 2, said))))
    assert np.array_equal(found, np.rint(255 * (colours / 255) ** power))
    meant = png([row.tobytes() for row in colours], 16, 8, 2, chunk(b"sRGB", b"\0"), said)
    assert np.array_equal(np.asarray(to_rgb(open_image(meant))), colours)

    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(grey_profile(1.0)))
    grey = open_image(png([b"\x0a\xb0"], 2, 8, 0, said, profile))  # the profile goes first
    assert np.abs(np.asarray(to_channels(grey, 1))[0] - of_light(np.array([10, 176]) / 255)).max() <= 1


@pytest.mark.parametrize(
    "profile", [b"nonsense", rgb_profile(1.0)[:300], grey_profile(1.0), cmyk_profile(), b"\0" * 500]
)
def test_pictures_with_profiles_of_no_use_are_read_as_they_are(noise, profile):
    found, told = seen(Image.fromarray(noise[..., :3]), "PNG", profile)
    assert np.array_equal(found, noise[..., :3])
    assert len(told) == 1


def test_without_littlecms_it_is_told(noise, monkeypatch):
    def none(*_):
        raise ImportError("The _imagingcms C module is not installed")

    monkeypatch.setattr(ImageCms, "ImageCmsProfile", none)
    found, told = seen(Image.fromarray(noise[..., :3]), "PNG", rgb_profile(1.7))
    assert np.array_equal(found, noise[..., :3])
    assert "_imagingcms" in told[0]


@pytest.fixture
def log_file(tmp_path):
    """A log that loader workers write as well."""
    handler = logging.FileHandler(tmp_path / "log")
    logging.getLogger().addHandler(handler)
    yield tmp_path / "log"
    logging.getLogger().removeHandler(handler)
    handler.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_warns_once_and_names_a_picture(tmp_path, log_file, num_workers):
    for i in range(8):
        image = Image.new("RGB", (8, 8), (i, 0, 0))
        image.save(tmp_path / f"{i}.png", **({"icc_profile": b"nonsense"} if i % 4 == 3 else {}))
    data = ImageDataModule(train=str(tmp_path), image_size=8, batch_size=1, num_workers=num_workers)
    for _ in range(2):
        found = [batch.images[0, 0, 0, 0].item() for batch in data.predict_dataloader()[0]]
        assert np.rint(np.array(found) * 127.5 + 127.5).tolist() == list(range(8))
    told = log_file.read_text()
    assert told.count("colour profile") == 1
    assert "3.png" in told
