"""Small folders and tars of pictures, each of one colour that tells which it is."""

import io

import numpy as np
import webdataset
from PIL import Image


def png(value, size=8):
    """A PNG of one colour, which tells which image it was."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def value_of(source, i):
    return np.asarray(source.read(i))[0, 0, 0]


def write(folder, names):
    for value, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return str(folder)


def write_tar(path, samples, first=0):
    """`samples` are the contents of .cls members; None leaves the member out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as tar:
        for number, label in enumerate(samples, start=first):
            sample = {"__key__": f"sample{number}", "png": png(number)}
            tar.write(sample if label is None else {**sample, "cls": label})
    return str(path)
