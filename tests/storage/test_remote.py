"""Images at addresses: whatever the server does, the right bytes or one clear error within the time-out."""

import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.data.image_files import value_of, write_tar
from tests.storage.faulty_server import reset, server_error, serving, stall, truncate
from vqvae2.data.images import ImageDataModule
from vqvae2.data.sources import open_source
from vqvae2.storage import cache as shard_cache
from vqvae2.storage import remote
from vqvae2.storage.remote import Unreachable, look

LABELS = ["1", "0", "2"]


@pytest.fixture
def server(tmp_path):
    for number in range(2):
        write_tar(tmp_path / "served" / f"x-{number}.tar", LABELS, first=3 * number)
    with serving(tmp_path / "served") as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Small blocks and little patience."""
    monkeypatch.setenv("VQVAE2_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("VQVAE2_TIMEOUT_S", "0.3")
    monkeypatch.setenv("VQVAE2_GIVE_UP_S", "2")
    monkeypatch.setattr(remote, "BLOCK", 4096)
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.01)
    return tmp_path / "cache"


def pattern(server):
    return f"{server.url}/x-{{0..1}}.tar"


def assert_is_whole(source):
    assert [source.key(i) for i in range(6)] == [f"x-{i // 3}/sample{i}" for i in range(6)]
    assert [source.label(i) for i in range(6)] == [1, 0, 2, 1, 0, 2]
    assert [value_of(source, i) for i in (4, 0, 5, 3, 1, 2)] == [4, 0, 5, 3, 1, 2]


def files_in(cache):
    return sorted(path.relative_to(cache) for path in cache.rglob("*") if path.is_file())


def test_tars_at_an_address_are_read_like_tars_here(server, tmp_path):
    source = open_source(pattern(server))
    assert_is_whole(source)
    assert source.classes == open_source(str(tmp_path / "served")).classes
    assert source.fingerprint == open_source(pattern(server)).fingerprint


@pytest.mark.parametrize("fault", [reset, truncate, stall, server_error])
@pytest.mark.parametrize("ranges", [True, False])
def test_faults_that_pass_are_waited_out(server, fault, ranges):
    server.ranges = ranges
    server.faults = [fault] * 3
    assert_is_whole(open_source(pattern(server)))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (reset, "Error"),
        (truncate, "ClientPayloadError|EOFError"),
        (stall, "no answer within 0.3 s"),
        (server_error, "500"),
    ],
)
def test_faults_that_stay_end_in_one_error_within_the_limit(server, cache, fault, reason):
    server.always = fault
    started = time.monotonic()
    with pytest.raises(Unreachable, match=rf"x-[01]\.tar cannot be read: \d+ tries in \d s .*{reason}"):
        open_source(pattern(server))
    assert time.monotonic() - started < 2 + 0.3 + 2  # VQVAE2_GIVE_UP_S, VQVAE2_TIMEOUT_S and a slow machine
    assert files_in(cache / "shards") == []


def test_a_download_goes_on_where_it_stopped(server, cache, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 512)
    blocks = (cache.parent / "served" / "x-0.tar").stat().st_size // 512
    server.faults = [None, None, reset] * 3
    with shard_cache.opened(look(f"{server.url}/x-0.tar")) as stream:
        assert stream.read() == (cache.parent / "served" / "x-0.tar").read_bytes()
    assert server.requests["/x-0.tar"] == blocks + 3


def test_what_is_not_there_is_said_at_once(server, monkeypatch):
    monkeypatch.setenv("VQVAE2_GIVE_UP_S", "60")
    started = time.monotonic()
    with pytest.raises(Unreachable, match=r"x-2\.tar cannot be read .*404.*Check the address"):
        open_source(f"{server.url}/x-{{0..2}}.tar")
    assert time.monotonic() - started < 5


def test_nobody_answers(server):
    with pytest.raises(Unreachable, match=r"http://127.0.0.1:9/x\.tar cannot be read: \d+ tries"):
        open_source("http://127.0.0.1:9/x.tar")


def test_a_shard_that_changes_while_it_is_read_is_refused(server, tmp_path):
    file = look(f"{server.url}/x-0.tar")
    os.utime(tmp_path / "served" / "x-0.tar", ns=(1, 1))
    with pytest.raises(Unreachable, match="changed while it was read"):
        shard_cache.opened(file)


def test_a_tar_that_lies_damaged_on_the_server_is_named(server, tmp_path):
    path = tmp_path / "served" / "x-1.tar"
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(ValueError, match=r"http://.*/x-1\.tar is.* damaged or cut short"):
        open_source(pattern(server))


def test_a_second_start_downloads_and_indexes_nothing(server, cache, monkeypatch):
    assert_is_whole(open_source(pattern(server)))
    server.requests.clear()
    monkeypatch.setattr("vqvae2.storage.tars.index_tar", lambda *_: pytest.fail("indexed again"))
    assert_is_whole(open_source(pattern(server)))
    for shard in (cache / "shards").iterdir():
        shard.unlink()
    open_source(pattern(server))
    assert server.requests == {}


def test_a_shard_that_was_replaced_is_read_anew(server, tmp_path):
    assert value_of(open_source(f"{server.url}/x-0.tar"), 0) == 0
    write_tar(tmp_path / "served" / "x-0.tar", ["0", "0", "4"], first=7)
    source = open_source(f"{server.url}/x-0.tar")
    assert (value_of(source, 0), source.label(2)) == (7, 4)


def test_damage_in_the_cache_is_mended(server, cache):
    assert_is_whole(open_source(pattern(server)))
    for shard in (cache / "shards").iterdir():
        shard.write_bytes(shard.read_bytes()[:700])
    for index in (cache / "indices").iterdir():
        index.write_bytes(index.read_bytes()[:-30])
    assert_is_whole(open_source(pattern(server)))


def size_of(tmp_path):
    return (tmp_path / "served" / "x-0.tar").stat().st_size


def test_the_cache_keeps_its_bound_and_forgets_what_was_used_longest_ago(
    server, cache, monkeypatch, tmp_path, caplog
):
    for number in (2, 3):
        write_tar(tmp_path / "served" / f"x-{number}.tar", LABELS, first=3 * number)
    monkeypatch.setenv("VQVAE2_CACHE_GB", str(2.5 * size_of(tmp_path) / 1e9))
    files = [look(f"{server.url}/x-{number}.tar") for number in range(4)]
    for moment, number in enumerate((0, 1, 0, 2, 0, 3)):
        with shard_cache.opened(files[number]) as stream:
            os.utime(stream.fileno(), (moment, moment))
        held = [path.stat().st_size for path in (cache / "shards").iterdir()]
        assert sum(held) <= 2.5 * size_of(tmp_path)
    server.requests.clear()
    with shard_cache.opened(files[0]), shard_cache.opened(files[3]):
        assert server.requests == {}
    assert "too small" not in caplog.text
    with shard_cache.opened(files[2]):  # and what was just read has to go
        assert "is too small for the files in use" in caplog.text


def test_a_shard_in_use_is_never_removed(server, cache, monkeypatch, tmp_path):
    monkeypatch.setenv("VQVAE2_CACHE_GB", str(1.5 * size_of(tmp_path) / 1e9))
    monkeypatch.setenv("VQVAE2_GIVE_UP_S", "0.3")
    first, second = (look(f"{server.url}/x-{number}.tar") for number in range(2))
    with shard_cache.opened(first) as stream:
        with pytest.raises(Unreachable, match=r"x-1\.tar does not fit: .* in use. Raise VQVAE2_CACHE_GB"):
            shard_cache.opened(second)
        assert len(stream.read()) == first.size
    with shard_cache.opened(second) as stream:
        assert len(stream.read()) == second.size


def test_a_shard_larger_than_the_cache_is_refused(server, monkeypatch):
    monkeypatch.setenv("VQVAE2_CACHE_GB", "0.000001")
    with pytest.raises(Unreachable, match=r"the cache may hold 1e-06 GB. Raise VQVAE2_CACHE_GB"):
        open_source(pattern(server))


@pytest.mark.parametrize("value", ["0", "-1", "much", "nan"])
def test_a_bound_that_is_none(server, monkeypatch, value):
    monkeypatch.setenv("VQVAE2_CACHE_GB", value)
    with pytest.raises(ValueError, match=f"VQVAE2_CACHE_GB is '{value}', wanted a number above 0"):
        open_source(pattern(server))


def in_a_fork(work):
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def test_a_full_disk_is_said_and_leaves_nothing(server, cache):
    """The system refuses this process larger files, as a full disk does."""

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(Unreachable, match=r"needs .* GB in the cache .*File too large.*Make room or set"):
            open_source(pattern(server))

    process = in_a_fork(work)
    process.join(20)
    assert process.exitcode == 0
    assert [path for path in files_in(cache / "shards") if path.suffix] == []


def test_a_cache_that_cannot_be_written(server, cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")  # stands in for a read-only folder, which does not stop root
    monkeypatch.setenv("VQVAE2_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(Unreachable, match=r"file/cache.* cannot be .*(written|read)"):
        open_source(pattern(server))


def test_a_full_cache_that_can_only_be_read_serves(server, cache, monkeypatch):
    assert_is_whole(open_source(pattern(server)))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "read-only")

    for name in ("os.utime", "os.replace", "pathlib.Path.mkdir", "tempfile.mkstemp"):
        monkeypatch.setattr(name, refuse)
    assert_is_whole(open_source(pattern(server)))


def test_processes_that_want_the_same_shard_download_it_once(server, cache, tmp_path):
    go = multiprocessing.get_context("fork").Event()

    def work():
        go.wait()
        with shard_cache.opened(look(f"{server.url}/x-0.tar")) as stream:
            assert stream.read() == (tmp_path / "served" / "x-0.tar").read_bytes()

    processes = [in_a_fork(work) for _ in range(4)]
    go.set()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0] * 4
    assert server.requests["/x-0.tar"] == -(-size_of(tmp_path) // 4096)


def test_a_killed_download_is_done_by_who_comes_next(server, cache, tmp_path):
    server.always = stall
    process = in_a_fork(lambda: shard_cache.opened(look(f"{server.url}/x-0.tar")))
    while not list(cache.rglob("*.part")):
        time.sleep(0.01)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(cache.rglob("*.part"))
    server.always = None
    assert_is_whole(open_source(pattern(server)))
    assert not list(cache.rglob("*.part"))


def images(location, **options):
    data = ImageDataModule(train=location, **{"image_size": 8, "batch_size": 2, "seed": 3, **options})
    data.prepare_data()
    data.setup("fit")
    return data


def test_training_from_an_address_and_an_outage_is_no_unreadable_image(server, cache):
    data = images(pattern(server), num_workers=1)
    loader = data.train_dataloader()
    seen = [int(i) for batch in loader for i in batch.index]
    assert sorted(seen) == list(range(6))
    for shard in (cache / "shards").iterdir():
        shard.unlink()
    server.always = server_error
    with pytest.raises(Unreachable, match=r"x-\d\.tar cannot be read: \d+ tries"):
        list(loader)


def test_a_cache_smaller_than_the_data_is_shuffled_by_shards_and_never_thrashes(
    server, monkeypatch, tmp_path, caplog
):
    for number in range(8):
        write_tar(tmp_path / "served" / f"y-{number}.tar", LABELS, first=3 * number)
    monkeypatch.setenv("VQVAE2_GIVE_UP_S", "60")  # nothing is at fault here but a busy machine
    monkeypatch.setenv("VQVAE2_CACHE_GB", str(4.5 * size_of(tmp_path) / 1e9))
    data = images(f"{server.url}/y-{{0..7}}.tar", batch_size=3)
    loader = data.train_dataloader()
    assert "shuffles within 2 shards at a time" in caplog.text
    orders = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        server.requests.clear()
        seen = np.array([int(i) for batch in loader for i in batch.index])
        assert sorted(seen) == list(range(24))
        assert all(len(set(block // 3)) == 2 for block in seen.reshape(4, 6))
        assert sum(server.requests.values()) <= 8 * -(-size_of(tmp_path) // 4096)
        orders.append(seen.tolist())
    assert orders[0] != orders[1]
    assert [sorted(orders[0][:6]), sorted(orders[0])] != [orders[0][:6], orders[0]]
    monkeypatch.setenv("VQVAE2_CACHE_GB", str(1.5 * size_of(tmp_path) / 1e9))
    with pytest.raises(ValueError, match=r"less than two shards.*Raise VQVAE2_CACHE_GB to"):
        data.train_dataloader()


class Bucket(MemoryFileSystem):
    """Stands in for s3: another protocol, a version under another name, reads that fail."""

    protocol = "bucket"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    failures: ClassVar[list[Exception]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("bucket://", "memory://"))

    def info(self, path, **kwargs):
        return {**super().info(path), "ETag": "one"}

    def _open(self, path, *args, **kwargs):
        if self.failures:
            raise self.failures.pop()
        return super()._open(path, *args, **kwargs)


def test_any_protocol_of_fsspec_takes_the_same_way(tmp_path):
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    for number in range(2):
        path = write_tar(tmp_path / "a" / f"x-{number}.tar", LABELS, first=3 * number)
        fsspec.filesystem("bucket").pipe(f"bucket://b/x-{number}.tar", Path(path).read_bytes())
    Bucket.failures = [ConnectionResetError("reset"), TimeoutError("slow"), OSError(5, "SlowDown")]
    assert_is_whole(open_source("bucket://b/x-{0..1}.tar"))
    with pytest.raises(Unreachable, match=r"bucket://b/y\.tar cannot be read"):
        open_source("bucket://b/y.tar")


def test_a_package_that_is_missing_and_other_addresses_are_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3://b/x\.tar cannot be read: Install s3fs"):
        open_source("s3://b/x.tar")
    with pytest.raises(ValueError, match="Protocol not known: nonsense"):
        open_source("nonsense://b/x.tar")
    for location in ("https://host/x.tar.gz", "https://host/x.npz", "https://host/folder"):
        with pytest.raises(ValueError, match="read from uncompressed tars"):
            open_source(location)
