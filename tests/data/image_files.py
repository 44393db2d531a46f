"""Small folders and tars of pictures, each of one colour that tells which it is."""

import io
import tarfile

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


def write_members(path, members, form=tarfile.PAX_FORMAT):
    """A tar of (name, content); a content (type, target) makes a link, (type, "") anything else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                member.type, member.linkname = content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(path)


def facts(source):
    """Key, label and value of every image."""
    return [(source.key(i), source.label(i), value_of(source, i)) for i in range(len(source))]
