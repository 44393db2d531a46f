"""Damage to files and to processes: nothing is lost, doubled or run, and nothing hangs."""

import io
import json
import multiprocessing
import os
import pickle
import re
import signal
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.image_files import png, value_of, write, write_tar
from tests.data.latent_folder import epoch_of, module, write_folder
from vqvae2.data.images import ImageDataModule
from vqvae2.data.sources import open_source
from vqvae2.storage.cache import cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VQVAE2_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("vqvae2.storage.tars.WORTH_KEEPING", 2)


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def pickled_array(path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb(path)] * 3, dtype=object), allow_pickle=True)
    return buffer.getvalue()


def in_tar(path, name, content):
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("place", ["member", "manifest", "npz", "image", "label", "index", "verified"])
def test_pickle_bombs_do_not_go_off(tmp_path, place):
    """The bomb is real: it goes off where it is unpickled."""
    executed, bomb = tmp_path / "executed", pickle.dumps(Bomb(tmp_path / "executed"))
    pickle.loads(bomb)
    executed.unlink()
    if place in ("member", "manifest", "verified"):
        folder = write_folder(tmp_path / "latents")
        if place == "member":
            in_tar(folder / "train/000000.tar", "000000-0009.top.npy", pickled_array(executed))
            content = json.loads((folder / "manifest.json").read_text())
            content["splits"]["train"][0]["bytes"] = (folder / "train/000000.tar").stat().st_size
            (folder / "manifest.json").write_text(json.dumps(content))
        else:
            (folder / {"manifest": "manifest.json", "verified": ".verified.json"}[place]).write_bytes(bomb)
        if place == "verified":
            module(folder)
        else:
            with pytest.raises(ValueError, match="Encode again"):
                module(folder)
    elif place == "npz":
        for name, content in (("arr_0.npy", pickled_array(executed)), ("arr_0.npy", bomb)):
            with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
                archive.writestr(name, content)
            with pytest.raises(ValueError, match="arr_0"):
                open_source(str(tmp_path / "x.npz"))
    else:
        location = write_tar(tmp_path / "x.tar", ["0", "0"])
        if place == "image":
            in_tar(tmp_path / "x.tar", "bomb.png", bomb)
            in_tar(tmp_path / "x.tar", "bomb.cls", b"0")
            with pytest.raises(OSError, match="not an image"):
                open_source(location).read(2)
        elif place == "label":
            in_tar(tmp_path / "x.tar", "bomb.png", png(2))
            in_tar(tmp_path / "x.tar", "bomb.cls", bomb)
            with pytest.raises(ValueError, match="wanted a class index"):
                open_source(location)
        else:
            open_source(location)
            (index,) = (cache_folder() / "indices").iterdir()
            for content in (bomb, pickled_array(executed)):
                index.write_bytes(content)
                assert len(open_source(location)) == 2
    assert not executed.exists()


def test_flipped_bytes_anywhere_in_a_latent_shard_are_found(tmp_path):
    """In a tar's header, in an array's header, in codes, in labels, in the padding and in the end mark."""
    shard = write_folder(tmp_path / "latents") / "train" / "000001.tar"
    whole = shard.read_bytes()
    for place in (*range(10, len(whole), 1500), len(whole) - 1):
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=r"000001\.tar is damaged: its SHA-256 is .*Encode again"):
            module(tmp_path / "latents")
    shard.write_bytes(whole)
    assert len(epoch_of(module(tmp_path / "latents").train_dataloader(), 0)) == 5


def test_an_epoch_of_latents_whose_shard_vanishes_under_the_run_is_unharmed(tmp_path):
    """It is mapped: what was opened stays whole, whatever happens to the name."""
    folder = write_folder(tmp_path / "latents")
    data = module(folder)
    expected = [batch.codes[0].tolist() for batch in epoch_of(data.train_dataloader(), 0)]
    (folder / "train" / "000001.tar").unlink()
    assert [batch.codes[0].tolist() for batch in epoch_of(data.train_dataloader(), 0)] == expected
    with pytest.raises(ValueError, match=r"000001\.tar is missing"):
        module(folder)


def jpeg(value):
    buffer = io.BytesIO()
    noise = np.random.default_rng(value).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: bytes(99)]
)
def test_damaged_pictures_within_a_tar_are_counted_and_left_out(tmp_path, caplog, damage):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(6):
            content = damage(jpeg(number)) if number == 4 else jpeg(number)
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    data = ImageDataModule(train=str(tmp_path / "x.tar"), image_size=16, batch_size=3)
    data.setup("fit")
    seen = sorted(int(i) for batch in data.train_dataloader() for i in batch.index)
    assert seen == [0, 1, 2, 3, 5, 5]
    data.teardown()
    assert "skipped 1 of 6 train images, unreadable: x/4.jpg" in caplog.text
    strict = ImageDataModule(train=str(tmp_path / "x.tar"), image_size=16, batch_size=3, strict=True)
    with pytest.raises(ValueError, match=r"x/4\.jpg cannot be read .*Mend or remove it"):
        list(strict.train_dataloader())


def test_a_killed_loader_worker_ends_the_run_within_10_s(tmp_path):
    location = write(tmp_path / "x", [f"{i}.png" for i in range(200)])
    messages, told = multiprocessing.get_context("fork").Pipe(duplex=False)

    def train():  # in a process of its own: the signal of a dead worker may arrive at any line
        data = ImageDataModule(train=location, image_size=8, batch_size=2, num_workers=2)
        data.setup("fit")
        batches = iter(data.train_dataloader())
        next(batches)
        time.sleep(0.3)  # both workers have made what they make in advance
        try:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            told.send(f"all {len(list(batches))} batches came")
        except (RuntimeError, OSError) as error:
            told.send(str(error))
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=train)
    process.start()
    try:
        assert messages.poll(10), "it hangs"
        assert re.search("killed by signal: Killed|exited unexpectedly|loader worker died", messages.recv())
    finally:
        process.kill()
        process.join()


def test_the_index_of_a_tar_is_kept_until_the_tar_changes(tmp_path, monkeypatch):
    path = Path(write_tar(tmp_path / "x.tar", ["1", "0", "3"]))
    first = open_source(str(path))
    with monkeypatch.context() as patch:
        patch.setattr("vqvae2.storage.tars.index_tar", lambda *_: pytest.fail("indexed again"))
        again = open_source(str(path))
    assert [again.key(i) for i in range(3)] == [first.key(i) for i in range(3)]
    assert [again.label(i) for i in range(3)] == [1, 0, 3]
    assert [value_of(again, i) for i in range(3)] == [0, 1, 2]
    assert again.fingerprint == first.fingerprint
    write_tar(path, [None, None, None], first=7)
    changed = open_source(str(path))
    assert [(value_of(changed, i), changed.label(i)) for i in range(3)] == [(7, -1), (8, -1), (9, -1)]
    assert open_source(str(path)).label(2) == -1
    (index,) = (cache_folder() / "indices").iterdir()
    index.write_bytes(index.read_bytes()[:-40])
    assert value_of(open_source(str(path)), 1) == 8


def test_an_index_that_cannot_be_kept_is_made_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQVAE2_CACHE_DIR", str(tmp_path / "file" / "cache"))
    location = write_tar(tmp_path / "x.tar", ["1", "0"])
    assert [open_source(location).label(0) for _ in range(2)] == [1, 1]
