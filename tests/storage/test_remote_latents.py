"""Latents at an address: brought here whole, once, and checked, or refused before training starts."""

import json
import os

import pytest

from tests.data.latent_folder import epoch_of, module, write_folder
from tests.storage.faulty_server import garble, reset, server_error, serving, stall, truncate
from vqvae2.data.latent_module import LatentDataModule
from vqvae2.storage import remote


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "latents")


@pytest.fixture
def server(folder):
    with serving(folder) as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Little patience."""
    monkeypatch.setenv("VQVAE2_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("VQVAE2_TIMEOUT_S", "0.3")
    monkeypatch.setenv("VQVAE2_GIVE_UP_S", "1.5")
    monkeypatch.setattr(remote, "_FIRST_PAUSE_S", 0.01)
    return tmp_path / "cache"


def indices(data):
    return [batch.index.tolist() for batch in epoch_of(data.train_dataloader(), 0)]


def codes(data):
    return [level.tolist() for batch in epoch_of(data.train_dataloader(), 1) for level in batch.codes]


@pytest.mark.parametrize("fault", [None, reset, truncate, stall, server_error, garble])
def test_latents_at_an_address_are_those_here(server, folder, fault, monkeypatch):
    monkeypatch.setenv("VQVAE2_GIVE_UP_S", "60")  # the faults pass, also on a busy machine
    here = module(folder)
    there = LatentDataModule(latents=server.url, batch_size=10, seed=3)
    assert there.spec == here.spec
    server.faults = [fault] * 2 if fault else []
    there.prepare_data()
    there.setup("fit")
    assert (indices(there), codes(there)) == (indices(here), codes(here))


def test_a_second_run_downloads_the_manifest_alone(server, monkeypatch):
    module(server.url)
    server.requests.clear()
    monkeypatch.setattr("vqvae2.data.latent_shards.sha256", lambda path: pytest.fail(f"read {path}"))
    module(server.url)
    assert set(server.requests) == {"/manifest.json"}


def test_damage_in_the_cache_is_mended(server, folder, cache):
    module(server.url)
    (shard,) = cache.rglob("train/000001.tar")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    (other,) = cache.rglob("train/000000.tar")
    other.write_bytes(b"")
    assert codes(module(server.url)) == codes(module(folder))
    assert shard.read_bytes() == whole


def flip(path):
    content = bytearray(path.read_bytes())
    content[5 * 512 + 200] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, r"train/000001.tar is damaged: .*both times its content was not that of the manifest"),
        (lambda path: path.write_bytes(path.read_bytes()[:-512]), r"000001.tar has \d+ bytes, the manifest"),
        (lambda path: path.unlink(), r"000001.tar cannot be read .*404"),
    ],
)
def test_shards_that_lie_damaged_at_the_address_are_refused(server, folder, cache, damage, message):
    damage(folder / "train" / "000001.tar")
    with pytest.raises(ValueError, match=message):
        module(server.url)
    assert not list(cache.rglob("train/000001.tar*"))


def test_manifests_that_are_none(server, folder, tmp_path):
    bomb = f"cos\nsystem\n(S'touch {tmp_path / 'executed'}'\ntR."
    for content in (bomb, "{}", "[1", json.dumps({"format": "vqvae2 latents"})):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=r"manifest\.json: .*Encode again"):
            module(server.url)
    assert not (tmp_path / "executed").exists()
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read .*404"):
        module(server.url)


def test_latents_that_were_encoded_again_are_another_folder(server, folder):
    first = module(server.url)
    content = json.loads((folder / "manifest.json").read_text())
    content["source"] = {"image_size": 13}
    (folder / "manifest.json").write_text(json.dumps(content))
    second = module(server.url)
    assert first.latents != second.latents
    assert codes(first) == codes(second)


def test_latents_larger_than_the_cache_are_refused_before_any_is_downloaded(server, monkeypatch):
    monkeypatch.setenv("VQVAE2_CACHE_GB", "0.00001")
    with pytest.raises(
        ValueError, match=r"GB of latents.*the cache may hold 1e-05 GB. Raise VQVAE2_CACHE_GB"
    ):
        module(server.url)
    assert set(server.requests) == {"/manifest.json"}


def test_latents_in_use_stay_and_others_make_room(server, folder, cache, monkeypatch, tmp_path):
    """A process that ended has let go of its latents."""
    if (process := os.fork()) == 0:
        module(server.url)
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    (first,) = cache.glob("shards/*")
    total = sum(path.stat().st_size for path in first.rglob("*.tar"))
    monkeypatch.setenv("VQVAE2_CACHE_GB", str(1.4 * total / 1e9))
    other = write_folder(tmp_path / "other", samples_per_shard=30)
    with serving(other) as again:
        held = module(again.url)
        assert not first.exists()
        with pytest.raises(ValueError, match="does not fit: the cache"):
            module(server.url)
        assert len(codes(held)) == 10
