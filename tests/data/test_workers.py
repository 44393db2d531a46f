"""Loader workers: signals that are not for them, parents that are gone, shared memory that is too small."""

import logging
import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import signal
import subprocess
import time
import traceback
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from vqvae2.data.images import ImageDataModule
from vqvae2.data.latent_module import LatentDataModule
from vqvae2.data.loader import BatchLoader, batch_loader
from vqvae2.data.order import EpochBatches

FORKS = multiprocessing.get_context("fork")
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return str(folder)


@pytest.fixture
def small(monkeypatch):
    """512 kB of shared memory, of which as much as is asked for is free."""

    def make(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(512_000, 512_000 - free, free))
        monkeypatch.setattr(BatchLoader, "warned", False)

    return make


def train_loader(images, *, size=64, workers=2):
    data = ImageDataModule(train=images, image_size=size, batch_size=4, num_workers=workers)
    data.setup("fit")
    return data.train_dataloader()


def in_a_process(job, timeout_s=30):
    """What `job` returns, in a process (and a process group) of its own."""
    received, told = FORKS.Pipe(duplex=False)

    def work():
        os.setpgid(0, 0)
        try:
            told.send((job(), None))
        except BaseException:  # of whatever kind: the test shows it, and does not wait for an answer
            told.send((None, traceback.format_exc()))

    process = FORKS.Process(target=work)
    process.start()
    try:
        assert received.poll(timeout_s), "it hangs"
        found, failure = received.recv()
        assert failure is None, failure
        return found
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("num_workers", [1, 4])
def test_signals_to_the_group_do_not_reach_the_workers(images, num_workers):
    def job():
        heard = []
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(signum, lambda signum, _: heard.append(signum))
        batches = iter(train_loader(images, size=8, workers=num_workers))
        keys = list(next(batches).keys)
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            subprocess.run(
                ["kill", f"-{int(signum)}", "--", f"-{os.getpgid(0)}"], check=False
            )  # which it gets too
        time.sleep(0.2)
        keys += [key for batch in batches for key in batch.keys]
        return sorted(keys), heard

    keys, heard = in_a_process(job)
    assert keys == [f"{i:02d}" for i in range(24)]
    assert sorted(heard) == sorted((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1))


def test_a_process_that_exits_in_the_middle_of_an_epoch_does_not_wait_for_its_workers(images):
    """Nor, as then torch leaves it to its parent to end them, do they outlive it."""

    def work():
        global kept  # or torch ends them when the loader is no longer in use
        kept = iter(train_loader(images, size=8, workers=2))
        next(kept)

    process = FORKS.Process(target=work)
    process.start()
    process.join(10)
    code = process.exitcode
    process.kill()
    assert code == 0


def test_workers_of_a_killed_process_end_though_nobody_takes_their_batches(images, small):
    small(0)  # so that the batches fill the pipe
    received, told = FORKS.Pipe(duplex=False)

    def work():
        batches = iter(train_loader(images, size=128, workers=2))  # 786 kB a batch, where a pipe holds 64
        next(batches)
        told.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(60)

    process = FORKS.Process(target=work)
    process.start()
    pids = received.recv()
    process.kill()
    process.join()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.parametrize("free", [0, 390_000])  # a batch of 4 takes 197 kB, and as much has to be left
def test_without_room_in_shared_memory_the_same_batches_come_with_one_line(images, small, caplog, free):
    wanted = list(train_loader(images, workers=0))
    small(free)
    with caplog.at_level(logging.WARNING):
        loaders = [train_loader(images) for _ in range(2)]
        found = [batch for loader in loaders for batch in loader]
    assert not any(batch.images.is_shared() for batch in found)
    for mine, theirs in zip(found, wanted * 2, strict=True):
        assert mine.keys == theirs.keys
        for name in ("images", "labels", "index"):
            assert getattr(mine, name).dtype == getattr(theirs, name).dtype
            assert torch.equal(getattr(mine, name), getattr(theirs, name))
    [record] = caplog.records
    line = record.getMessage()
    assert (
        f"shared memory is too small ({free / 1e6:.1f} MB are free in /dev/shm, a batch takes 0.2 MB)" in line
    )
    assert "--shm-size" in line
    assert "num_workers" in line


def test_with_room_batches_come_in_shared_memory(images, small, caplog):
    small(400_000)
    assert all(batch.images.is_shared() for batch in train_loader(images))
    assert caplog.records == []


def test_batches_of_codes_do_without_too(latents, small):
    small(0)
    batches = []
    for num_workers in (0, 2):
        data = LatentDataModule(latents=latents, batch_size=4, num_workers=num_workers)
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    for mine, theirs in zip(*batches, strict=True):
        for one, other in zip((*mine.codes, mine.labels), (*theirs.codes, theirs.labels), strict=True):
            assert torch.equal(one, other)


def test_a_limit_that_no_figure_tells_beforehand(images):
    """As of a quota: the file in shared memory cannot grow to a batch, though there is room."""

    def job():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        return sorted(key for batch in train_loader(images) for key in batch.keys)

    assert in_a_process(job) == [f"{i:02d}" for i in range(24)]


def test_no_room_even_for_the_workers_queues(images, monkeypatch):
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    loader = train_loader(images)
    monkeypatch.setattr(torch.multiprocessing, "Queue", no_room)
    with pytest.raises(ChildProcessError, match=r"cannot be started \(No space.*Shared memory is /dev/shm"):
        next(iter(loader))


class Unsendable(Dataset):
    """Its batches cannot be pickled, which the queue's own thread finds out."""

    def __len__(self):
        return 4

    def __getitems__(self, batch):
        return [lambda: None]


def test_a_batch_that_cannot_be_handed_over_is_not_waited_for(capfd):
    batches = EpochBatches(4, global_batch_size=2, shuffle=False)

    def job():
        with pytest.raises((RuntimeError, ChildProcessError)) as error:
            list(batch_loader(Unsendable(), batches, 1))
        return str(error.value)

    said = in_a_process(job)
    assert "DataLoader worker" in said or "loader worker died" in said
    assert "A loader worker cannot hand over its batch" in capfd.readouterr().err


def test_a_parent_that_is_stopped_while_it_fetches_a_batch_is_no_news(images, capfd):
    def job():
        def stop(*_: object) -> None:
            raise InterruptedError

        batches = iter(train_loader(images, workers=1))
        next(batches)
        multiprocessing.connection.answer_challenge = stop  # in the middle of the two's greeting
        with pytest.raises(InterruptedError):
            next(batches)
        time.sleep(0.3)

    in_a_process(job)
    assert "Traceback" not in capfd.readouterr().err
