"""Samples in one .npz: every layout that np.savez writes is read as NumPy reads it, every fault is named."""

import contextlib
import io
import multiprocessing
import os
import pickle
import tempfile
import zipfile

import numpy as np
import pytest

from vqvae2.data.sources import open_source
from vqvae2.storage import tars


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system_tmp"))
    (tmp_path / "system_tmp").mkdir()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(path, *arrays, write=np.savez):
    write(path, *arrays)
    return str(path)


def pixels_of(source):
    return np.stack([np.asarray(source.read(i)) for i in range(len(source))])


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("shape", [(7, 5, 6, 3), (7, 5, 6, 1), (7, 5, 6)])
def test_images_and_labels_are_those_that_numpy_reads(tmp_path, write, shape):
    labels = np.array([3, 0, 0, 1, 2, 3, 0], np.uint16)
    location = save(tmp_path / "x.npz", noise(*shape), labels, write=write)
    source = pickle.loads(pickle.dumps(open_source(location)))
    with np.load(location) as expected:
        colour = shape[3:] == (3,)
        assert np.array_equal(pixels_of(source), expected["arr_0"] if colour else noise(7, 5, 6))
        assert np.array_equal(source.labels, expected["arr_1"])
    assert source.read(2).mode == ("RGB" if colour else "L")
    assert source.classes == ("0", "1", "2", "3")
    assert source.labels.dtype == np.int64
    assert source.key(6) == "image-000006"


def test_an_archive_without_labels_in_any_order_and_with_other_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "X.NPZ", "w") as archive:
        for name, array in (("mu.npy", np.zeros(3)), ("arr_0.npy", noise(4, 2, 2, 3))):
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(name, buffer.getvalue())
    source = open_source(str(tmp_path / "X.NPZ"))
    assert np.array_equal(pixels_of(source), noise(4, 2, 2, 3))
    assert source.labels.tolist() == [-1] * 4
    assert source.classes == ()


def test_labels_are_checked_named_or_ignored_as_anywhere(tmp_path):
    location = save(tmp_path / "x.npz", noise(2, 2, 2), np.array([0, 4]))
    assert open_source(location, num_classes=5, classes=tuple("abcde")).classes == tuple("abcde")
    assert open_source(location, num_classes=0).labels.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="image-000001 has the label 4, outside the 3 classes"):
        open_source(location, num_classes=3)
    with pytest.raises(ValueError, match="image-000000 has the label -1, outside the 3 classes"):
        open_source(save(tmp_path / "y.npz", noise(2, 2, 2), np.array([-1, 2])))
    with pytest.raises(ValueError, match="has no labels, wanted 2 classes"):
        open_source(save(tmp_path / "z.npz", noise(2, 2, 2)), num_classes=2)


def test_workers_read_what_the_parent_opened(tmp_path):
    source = open_source(save(tmp_path / "x.npz", noise(9, 4, 4, 3)))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert np.array_equal(np.stack(pool.map(source.read, range(9))), noise(9, 4, 4, 3))


def test_stored_images_are_read_one_by_one_and_compressed_ones_unpacked_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("read a whole member"))
    read_range = tars.read_range
    monkeypatch.setattr(tars, "read_range", lambda *where: asked.append(where[2]) or read_range(*where))
    pixels_of(open_source(save(tmp_path / "x.npz", noise(50, 8, 8))))
    assert max(asked) == 64
    assert not list((tmp_path / "system_tmp").iterdir())

    location = save(tmp_path / "y.npz", noise(50, 8, 8), write=np.savez_compressed)
    open_source(location)
    (unpacked,) = (tmp_path / "system_tmp").rglob("*.npy")
    made = unpacked.stat().st_mtime_ns
    open_source(location)
    assert unpacked.stat().st_mtime_ns == made
    save(tmp_path / "y.npz", 255 - noise(50, 8, 8), write=np.savez_compressed)
    os.utime(location, ns=(1, 1))
    assert np.array_equal(pixels_of(open_source(location)), 255 - noise(50, 8, 8))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.zeros((2, 4, 4, 3), np.float32)], r"arr_0 is float32, wanted uint8.*whole numbers.*255"),
        ([np.zeros((2, 4, 4, 3), np.int64)], "arr_0 is int64, wanted uint8"),
        (
            [noise(2, 3, 4, 4)],
            r"arr_0 is 2 x 3 x 4 x 4, wanted images.*channels last: np\.moveaxis\(x, 1, 3\)",
        ),
        ([noise(2, 4, 4, 4)], r"arr_0 is 2 x 4 x 4 x 4, wanted images \[N, H, W, 3\]"),
        ([noise(8, 8)], "arr_0 is 8 x 8, wanted images"),
        ([np.uint8(3)], "arr_0 is a single number, wanted images"),
        ([noise(2, 0, 4)], "arr_0 is 2 x 0 x 4, wanted images"),
        ([noise(0, 4, 4)], "holds no image"),
        ([np.array([None, {}])], "arr_0 holds pickled Python objects, which are never opened"),
        ([noise(4, 4, 5).T], "arr_0 is saved in Fortran order.*ascontiguousarray"),
        ([noise(3, 2, 2), np.arange(2)], r"labels arr_1 are int64 of shape \[2\], wanted .* the 3 images"),
        ([noise(3, 2, 2), np.zeros((3, 4), int)], r"labels arr_1 are int64 of shape \[3, 4\]"),
        ([noise(3, 2, 2), np.zeros(3)], r"labels arr_1 are float64 of shape \[3\].*num_classes to 0"),
        ([noise(3, 2, 2), np.array(["a", None, 2])], "arr_1 holds pickled Python objects"),
        ([], r"has no arr_0, but nothing"),
    ],
)
def test_what_is_not_images_or_labels_is_named(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        open_source(save(tmp_path / "x.npz", *arrays))


def test_arrays_of_other_names_are_listed(tmp_path):
    np.savez(tmp_path / "x.npz", images=noise(2, 2, 2), mu=np.zeros(3))
    with pytest.raises(ValueError, match=r"x\.npz has no arr_0, but images\.npy, mu\.npy\. Wanted .*savez"):
        open_source(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_a_file_cut_short_anywhere_is_named(tmp_path, write):
    path = tmp_path / "x.npz"
    save(path, noise(20, 8, 8, 3), np.arange(20), write=write)
    whole = path.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.npz cannot be read as an \.npz \(.*damaged or cut short"):
            open_source(str(path))


def test_an_array_cut_short_inside_a_whole_archive(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, noise(20, 8, 8))
    for keep, message in (
        (-100, "promises 1,280 bytes, there are 1,180"),
        (40, "no array that np.savez wrote"),
    ):
        with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
            archive.writestr("arr_0.npy", buffer.getvalue()[:keep])
        with pytest.raises(ValueError, match=f"arr_0 is .*{message}"):
            open_source(str(tmp_path / "x.npz"))


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damage_of_any_kind_is_a_message(tmp_path, write):
    """Whatever bytes go in: a ValueError that names the file on opening, an OSError on reading."""
    path = tmp_path / "x.npz"
    save(path, noise(3, 4, 4), np.arange(3), write=write)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    generator = np.random.default_rng(1)
    refusals = []
    for _ in range(400):
        damaged = whole.copy()
        damaged[generator.integers(0, len(whole), 3)] = generator.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            source = open_source(str(path))
        except ValueError as error:
            refusals.append(str(error))
        else:
            with contextlib.suppress(OSError):
                pixels_of(source)
    assert len(refusals) > 50
    assert all("x.npz" in refusal for refusal in refusals)


def test_a_file_that_shrinks_after_it_was_opened_is_unreadable(tmp_path):
    source = open_source(save(tmp_path / "x.npz", noise(20, 8, 8)))
    os.truncate(tmp_path / "x.npz", 900)
    with pytest.raises(OSError, match="has become shorter"):
        source.read(19)


def test_an_archive_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.npz is not there\. Wanted .*an \.npz"):
        open_source(str(tmp_path / "absent.npz"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 99999999999]), "image-000001 has the label 99999999999, which would mean 100,000,000"),
        (np.array([0, -2]), "image-000001 has the label -2, wanted a class index"),
        (np.array([1, 2**64 - 1], np.uint64), "labels arr_1 go up to 18446744073709551615, wanted class"),
    ],
)
def test_labels_that_are_no_numbers_of_classes_are_named(tmp_path, labels, message):
    location = save(tmp_path / "x.npz", noise(2, 2, 2), labels)
    with pytest.raises(ValueError, match=message):
        open_source(location)
    assert open_source(location, num_classes=0).labels.tolist() == [-1, -1]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_promises_more_than_it_can_hold_takes_no_memory(tmp_path, compression):
    """Header and table of contents agree on 10 TB of images of one pixel."""
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (10**13, 1, 1)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", compression) as archive:
        member = zipfile.ZipInfo("arr_0.npy")
        member.compress_type = compression
        with archive.open(member, "w", force_zip64=True) as file:
            file.write(header.getvalue())
        member.file_size = len(header.getvalue()) + 10**13
        if compression == zipfile.ZIP_STORED:
            member.compress_size = member.file_size
    with pytest.raises(ValueError, match=r"arr_0 is damaged .* 10,000,000,000,128 bytes cannot be in a file"):
        open_source(str(tmp_path / "x.npz"))
