"""Picture files written byte by byte, after the formats' specifications, as Pillow does not write them."""

import io
import struct
import zlib

import numpy as np


def encode(image, name, **options):
    """A file as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows, width, depth, colour, *chunks, behind=b""):
    """A PNG of packed rows; colour 0 is grey, 2 RGB, 3 palette. `behind` comes after the pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), behind, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(values, photometric, *, bits=None, sample_format=1):
    """An uncompressed grey TIFF [H, W] in the byte order of `values`, or of packed rows of `bits`."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    bits = bits or 8 * values.dtype.itemsize
    height, width = values.shape[0], values.size // len(values) * 8 * values.dtype.itemsize // bits
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 200, 277: 1, 278: height}
    entries |= {279: values.nbytes, 339: sample_format}
    # All as LONG, which any reader of numbers takes.
    table = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in entries.items())
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HIH", 42, 8, len(entries)) + table
    return head.ljust(200, b"\0") + values.tobytes()


def orientation(turn):
    """EXIF that says nothing but this."""
    return b"MM\0\x2a\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, turn, 0, 0)


SRGB_PRIMARIES = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))  # XYZ, D50


def rgb_profile(curve, primaries=SRGB_PRIMARIES):
    """An ICC profile of these primaries; `curve` is a gamma, or linear light at equal steps."""
    tags = {name + b"XYZ": _xyz(value) for name, value in zip((b"r", b"g", b"b"), primaries, strict=True)}
    return _profile(b"RGB ", b"XYZ ", tags | {name + b"TRC": _curve(curve) for name in (b"r", b"g", b"b")})


def grey_profile(curve):
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": _curve(curve)})


def cmyk_profile():
    """The lightness L* falls evenly with black ink; the other inks are without effect."""
    grid = np.full((2, 2, 2, 2, 3), 128, np.uint8)
    grid[..., 0] = (255, 0)
    identity = bytes(range(256))
    matrix = b"".join(map(_fixed, (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + identity * 4 + grid.tobytes() + identity * 3
    return _profile(b"CMYK", b"Lab ", {b"A2B0": table})


def _profile(space, connection, tags):
    tags = {b"wtpt": _xyz((0.9642, 1, 0.8249)), b"cprt": b"text" + bytes(4) + b"none" + bytes(4)} | tags
    tags |= {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"case" + bytes(80)}
    start, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", start + len(body), len(value))
        body += value
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"none", 0x02400000, b"prtr", space, connection)
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += b"".join(map(_fixed, (0.9642, 1, 0.8249)))
    return head.ljust(128, b"\0") + table + body


def _fixed(value):
    return struct.pack(">i", round(value * 65536))


def _xyz(values):
    return b"XYZ " + bytes(4) + b"".join(map(_fixed, values))


def _curve(curve):
    steps = np.atleast_1d(curve)
    numbers = np.rint(steps * (256 if len(steps) == 1 else 65535)).astype(">u2")
    return b"curv" + bytes(4) + struct.pack(">I", len(steps)) + numbers.tobytes()
