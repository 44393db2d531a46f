"""Folders of images."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.data.numbered import picture


@pytest.fixture
def folder(tmp_path):
    """Twelve pictures in two classes: number 0 to 5 in a, 6 to 11 in b."""
    for number in range(12):
        path = tmp_path / "images" / ("a" if number < 6 else "b") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
    return tmp_path / "images"


@pytest.fixture
def damaged(folder):
    """The same twelve, but 2 is empty, 3 is cut short and 11, the last, is a text."""
    (folder / "a" / "02.png").write_bytes(b"")
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(data, "PNG")
    (folder / "a" / "03.png").write_bytes(data.getvalue()[:2000])
    (folder / "b" / "11.png").write_text("not an image")
    return folder
