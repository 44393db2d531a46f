"""Surroundings of unpacked copies and of the cache: a full disk, no temporary folder, no home."""

import errno
import gzip
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from tests.data.image_files import facts, write_tar
from vqvae2.data.sources import open_source
from vqvae2.storage import unpacked
from vqvae2.storage.cache import cache_folder

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "system_tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("VQVAE2_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def tar_gz(path):
    return write_tar(path / "x.tar.gz", ["0", "1"])


def npz(path):
    np.savez_compressed(path / "x.npz", np.zeros((1000, 40, 40), np.uint8))
    return str(path / "x.npz")


def left(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("make", [tar_gz, npz])
def test_a_full_disk_names_the_temporary_folder_and_leaves_nothing(tmp_path, temporary, make):
    location = make(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(ValueError, match="cannot be unpacked into") as error:
            open_source(location)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(temporary) in str(error.value)
    assert "TMPDIR" in str(error.value)
    assert os.strerror(errno.EFBIG) in str(error.value)
    assert left(temporary) == []
    assert len(open_source(location)) in (2, 1000)  # there is room now


@pytest.mark.parametrize("make", [tar_gz, npz])
def test_unpacking_stops_before_the_disk_is_full(tmp_path, temporary, monkeypatch, make):
    location = make(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**9, 0, 10**7 + 1000))
    with pytest.raises(ValueError, match=r"0\.01 of 1 GB are free in .*system_tmp.*TMPDIR"):
        open_source(location)
    assert left(temporary) == []


def test_a_file_that_needs_more_than_there_is_is_not_begun(tmp_path, temporary, monkeypatch):
    location = npz(tmp_path)  # 1.6 MB when unpacked
    free = iter([2 * 10**6] * 9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(5 * 10**7, 0, next(free)))
    with pytest.raises(ValueError, match="cannot be unpacked"):
        open_source(location)
    assert len(list(free)) == 8  # looked once


def test_of_large_disks_a_gigabyte_is_left(tmp_path, monkeypatch):
    location = tar_gz(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**13, 0, 10**9 + 10**6))
    assert len(open_source(location)) == 2


def test_a_temporary_folder_that_cannot_be_used_is_named(tmp_path, temporary):
    (temporary / f"vqvae2-{os.getuid()}").write_text("a file in the place of the folder")
    with pytest.raises(ValueError, match=r"into .*system_tmp, the system's temporary folder \(File exists\)"):
        open_source(tar_gz(tmp_path))


def test_what_a_killed_process_left_is_overwritten(tmp_path, temporary):
    location = tar_gz(tmp_path)
    wanted = facts(open_source(location))
    (copy,) = left(temporary)
    copy.with_name(copy.name + ".part").write_bytes(b"half of something longer" * 9999)
    copy.unlink()
    assert facts(open_source(location)) == wanted
    assert left(temporary) == [copy]


def unpack_slowly(location, begun):
    opened = gzip.open

    def slow(path):
        begun.put(os.getpid())
        time.sleep(0.3)
        return opened(path)

    unpacked.gzip.open = slow
    assert len(open_source(location)) == 2


def test_of_several_processes_one_unpacks(tmp_path, temporary):
    fork = multiprocessing.get_context("fork")
    begun = fork.SimpleQueue()
    location = tar_gz(tmp_path)
    processes = [fork.Process(target=unpack_slowly, args=(location, begun)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    begun.get()
    assert begun.empty()
    assert len(left(temporary)) == 1


def no_home(monkeypatch):
    """A container run as a user that its /etc/passwd does not know."""

    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME", "VQVAE2_CACHE_DIR", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_home_the_cache_is_in_the_temporary_folder(tmp_path, temporary, monkeypatch):
    no_home(monkeypatch)
    monkeypatch.setattr("vqvae2.storage.tars.WORTH_KEEPING", 1)
    assert cache_folder() == temporary / f"vqvae2-{os.getuid()}" / "cache"
    assert len(open_source(write_tar(tmp_path / "x.tar", ["0", "1"]))) == 2
    assert len(list((cache_folder() / "indices").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/vqvae2"
    monkeypatch.setenv("VQVAE2_CACHE_DIR", str(tmp_path / "named"))
    assert cache_folder() == tmp_path / "named"


def test_a_home_that_is_named_and_not_there_is_an_error(monkeypatch):
    no_home(monkeypatch)
    monkeypatch.setenv("VQVAE2_CACHE_DIR", "~/cache")
    with pytest.raises(ValueError, match="VQVAE2_CACHE_DIR is ~/cache, but this user has no home folder"):
        cache_folder()


def test_with_a_home_the_cache_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "VQVAE2_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path(tmp_path, ".cache/vqvae2")
    monkeypatch.setenv("VQVAE2_CACHE_DIR", "~/c")
    assert cache_folder() == tmp_path / "c"
