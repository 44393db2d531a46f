"""A source's fingerprint: the same wherever the files lie, another as soon as any image changes."""

import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.data.image_files import png, write, write_members, write_tar
from vqvae2.data.sources import open_source
from vqvae2.storage import tars


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system_tmp"))
    (tmp_path / "system_tmp").mkdir()


def as_folder(tmp_path):
    return write(tmp_path / "x", ["a/1.png", "b/1.png", "b/2.png"])


def as_tars(tmp_path):
    write_tar(tmp_path / "x" / "s-0.tar", ["1", "0"])
    write_tar(tmp_path / "x" / "s-1.tar", ["2"], first=2)
    return str(tmp_path / "x")


def as_packed_tars(tmp_path):
    write_tar(tmp_path / "x" / "s-0.tar.gz", ["1", "0"])
    return str(tmp_path / "x")


def as_npz(tmp_path):
    (tmp_path / "x").mkdir(parents=True)
    np.savez(tmp_path / "x" / "s.npz", np.zeros((3, 4, 4), np.uint8), np.array([0, 1, 1]))
    return str(tmp_path / "x" / "s.npz")


def as_packed_npz(tmp_path):
    (tmp_path / "x").mkdir(parents=True)
    np.savez_compressed(tmp_path / "x" / "s.npz", np.zeros((3, 4, 4), np.uint8))
    return str(tmp_path / "x" / "s.npz")


KINDS = [as_folder, as_tars, as_packed_tars, as_npz, as_packed_npz]


@pytest.mark.parametrize("make", KINDS)
def test_a_fingerprint_survives_moving_copying_and_another_machine(tmp_path, make, monkeypatch):
    location = Path(make(tmp_path))
    source = open_source(str(location))
    assert len(source.fingerprint) == 64
    assert pickle.loads(pickle.dumps(source)).fingerprint == source.fingerprint
    again = tmp_path / "elsewhere" / "under another name"
    shutil.copytree(tmp_path / "x", again, copy_function=shutil.copy2)
    monkeypatch.setattr(
        tempfile, "tempdir", str(tmp_path / "elsewhere")
    )  # compressed files are unpacked anew
    copied = open_source(str(again / location.relative_to(tmp_path / "x")))
    assert copied.fingerprint == source.fingerprint


@pytest.mark.parametrize("make", KINDS)
def test_a_fingerprint_changes_with_any_file(tmp_path, make):
    location = make(tmp_path)
    files = sorted(path for path in (tmp_path / "x").rglob("*") if path.is_file())
    found = {open_source(location).fingerprint}
    for path in files:
        facts = path.stat()
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
        found.add(open_source(location).fingerprint)
    assert len(found) == 1 + len(files)


def keep_time(path, content):
    """Puts other content into a file without its time telling."""
    facts = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_a_fingerprint_tells_sizes_names_labels_and_checksums_apart(tmp_path):
    folder = Path(as_folder(tmp_path / "f"))
    plain = open_source(str(folder)).fingerprint
    assert open_source(str(folder), num_classes=0).fingerprint != plain
    keep_time(folder / "a" / "1.png", png(0) + b"more")
    longer = open_source(str(folder)).fingerprint
    (folder / "a" / "1.png").rename(folder / "a" / "7.png")
    renamed = open_source(str(folder)).fingerprint
    (folder / "b" / "2.png").unlink()
    assert len({plain, longer, renamed, open_source(str(folder)).fingerprint}) == 4

    tar, npz = (tmp_path / name for name in ("s.tar", "s.npz"))
    write_tar(tar, ["0", "1"])
    np.savez(npz, np.zeros((3, 4, 4), np.uint8), np.array([0, 1, 1]))
    for path, make in (
        (tar, lambda: write_tar(tar, ["1", "0"])),
        (npz, lambda: np.savez(npz, np.ones((3, 4, 4), np.uint8), np.array([0, 1, 1]))),
    ):
        before, old = open_source(str(path)).fingerprint, path.stat()
        make()
        os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
        assert path.stat().st_size == old.st_size
        assert open_source(str(path)).fingerprint != before


def test_a_fingerprint_is_taken_without_opening_a_file(tmp_path, monkeypatch):
    sources = [open_source(make(tmp_path / make.__name__)) for make in (as_folder, as_tars)]
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr(Path, "read_bytes", None)
    monkeypatch.setattr(Path, "open", None)
    assert sources[0].fingerprint != sources[1].fingerprint


def test_a_fingerprint_of_files_that_went_away_can_still_be_had(tmp_path):
    location = Path(as_folder(tmp_path))
    source, whole = (open_source(str(location)) for _ in range(2))
    assert whole.fingerprint
    (location / "b" / "2.png").unlink()
    assert source.fingerprint != whole.fingerprint


def test_the_digits_have_a_fingerprint_of_their_pixels():
    first, second = (open_source("demo:digits") for _ in range(2))
    assert first.fingerprint == second.fingerprint
    third = open_source("demo:digits")
    third._pixels[4000, 5, 5] ^= 1
    assert third.fingerprint != first.fingerprint


@pytest.mark.parametrize("make", KINDS)
def test_contents_are_those_of_every_copy_whatever_its_times(tmp_path, make):
    location = Path(make(tmp_path))
    source = open_source(str(location))
    for path in (tmp_path / "x").rglob("*"):
        os.utime(path, ns=(1, 1))
    shutil.copytree(tmp_path / "x", tmp_path / "copy", copy_function=shutil.copyfile)
    copied = open_source(str(tmp_path / "copy" / location.relative_to(tmp_path / "x")))
    assert copied.contents == source.contents
    assert copied.fingerprint != source.fingerprint
    assert len(source.contents) == 64


def test_contents_tell_other_bytes_and_other_sizes_from_those_before(tmp_path):
    folder = Path(as_folder(tmp_path / "f"))
    found = [open_source(str(folder)).contents]
    for content in (b"bytes", b"other", b"longer"):
        keep_time(folder / "b" / "1.png", content)
        found.append(open_source(str(folder)).contents)
    (folder / "b" / "1.png").unlink()
    os.symlink("gone.png", folder / "b" / "1.png")
    found.append(open_source(str(folder)).contents)
    assert len(set(found)) == 5

    tar, npz = tmp_path / "s.tar", tmp_path / "s.npz"
    before = open_source(write_members(tar, [("1.png", b"bytes")])).contents
    assert open_source(write_members(tar, [("1.png", b"other")])).contents != before
    assert open_source(write_members(tar, [("1.png", b"longer")])).contents != before
    np.savez(npz, np.zeros((3, 4, 4), np.uint8))
    before = open_source(str(npz)).contents
    np.savez(npz, np.ones((3, 4, 4), np.uint8))
    assert open_source(str(npz)).contents != before


def test_contents_do_not_depend_on_how_a_tar_is_packed(tmp_path):
    plain = open_source(write_tar(tmp_path / "a" / "s.tar", ["0", "1"]))
    packed = open_source(write_tar(tmp_path / "b" / "s.tar.gz", ["0", "1"]))
    members = [("more.txt", b"text"), *((f"sample{i}.png", png(i)) for i in range(2))]
    elsewhere = open_source(write_members(tmp_path / "c" / "s.tar", members))
    assert plain.contents == packed.contents == elsewhere.contents


def test_of_many_images_all_sizes_and_some_bytes_count(tmp_path, monkeypatch):
    """A changed size is seen in any of 255 files; the bytes of 64, spread evenly, are read."""
    location = Path(write(tmp_path / "x", [f"{i:03d}.png" for i in range(255)]))
    read, read_range = [], tars.read_range
    monkeypatch.setattr(
        tars, "read_range", lambda path, *where: read.append(path) or read_range(path, *where)
    )
    before = open_source(str(location)).contents
    numbers = [int(path.stem) for path in read]
    assert (len(numbers), numbers[0], numbers[-1]) == (64, 0, 254)
    assert set(np.diff(numbers)) <= {4, 5}
    unread = next(i for i in range(255) if i not in numbers)
    (location / f"{unread:03d}.png").write_bytes(png(0) + b"more")
    assert open_source(str(location)).contents != before


def test_the_digits_have_contents_of_their_pixels():
    first, second = (open_source("demo:digits") for _ in range(2))
    second._pixels[4000, 5, 5] ^= 1
    assert first.contents != second.contents
