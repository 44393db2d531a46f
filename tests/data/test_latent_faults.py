"""Damaged, foreign and hostile latents: one clear error each, before training starts."""

import hashlib
import io
import json
import pickle
import tarfile

import numpy as np
import pytest

from tests.data.latent_folder import SPEC, epoch_of, module, write_folder
from tests.ranks import run_ranks
from vqvae2.data.latent_shards import VERIFIED
from vqvae2.data.latents import check_autoencoder


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "runs" / "demo" / "latents")


MEND = r"make encode-latents CONFIG=demo"


def test_batch_sizes_that_cannot_work(folder):
    with pytest.raises(ValueError, match=r"batch_size is 48, but .* 47 training samples. Set it to 47"):
        module(folder, batch_size=48)

    def uneven():
        with pytest.raises(
            ValueError, match="batch_size 9 cannot be shared equally among 2 devices; 8 and 10 can"
        ):
            module(folder, batch_size=9)
        with pytest.raises(ValueError, match="2 and 4 can"):
            module(folder, batch_size=1)
        with pytest.raises(ValueError, match="Set it to 46"):
            module(folder, batch_size=48)

    run_ranks(uneven)


def test_no_latents(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        module(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"not finished.*make encode-latents CONFIG=NAME"):
        module(tmp_path)


def edit_manifest(folder, edit):
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(version=2), "version 2"),
        (lambda m: m.pop("spec"), "no field 'spec'"),
        (lambda m: m["spec"].update(num_classes="5"), "'num_classes' is '5', wanted int"),
        (lambda m: m["spec"]["levels"][0].update(height=True), "'height' is True, wanted int"),
        (lambda m: m["spec"]["levels"][0].update(num_codes=65537), "65537 codes"),
        (lambda m: m["spec"]["levels"][1].update(name="top"), "each name once"),
        (lambda m: m["classes"].pop(), "names 4 classes, but num_classes is 5"),
        (lambda m: m["classes"].__setitem__(0, 7), "'classes' is 7, wanted str"),
        (lambda m: m["splits"]["val"].pop(), "its shards hold"),
        (lambda m: m["splits"]["val"][0].update(file="../000000.tar"), r"wanted val/\*.tar"),
        (lambda m: m["splits"]["val"][0].update(num_samples=None), "'num_samples' is None"),
    ],
)
def test_a_wrong_manifest(folder, edit, message):
    edit_manifest(folder, edit)
    with pytest.raises(ValueError, match=rf"manifest.json: .*{message}.*{MEND}"):
        module(folder)


def test_a_manifest_that_is_not_json(folder):
    (folder / "manifest.json").write_bytes(pickle.dumps(SPEC.to_dict()))
    with pytest.raises(ValueError, match=rf"manifest.json: .*{MEND}"):
        module(folder)


def test_missing_and_unknown_shards(folder):
    shard = folder / "train" / "000001.tar"
    shard.rename(folder / "train" / "000009.tar")
    with pytest.raises(ValueError, match=rf"000001.tar is missing.*{MEND}"):
        module(folder)
    (folder / "train" / "000009.tar").rename(shard)
    (folder / "val" / "000007.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"000007.tar is not in the manifest.*{MEND}"):
        module(folder)


def test_a_truncated_shard(folder):
    shard = folder / "train" / "000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ValueError, match=rf"000001.tar has \d+ bytes, the manifest says \d+.*{MEND}"):
        module(folder)


def test_a_flipped_byte_is_found_even_after_the_shard_was_verified(folder):
    module(folder)
    shard = folder / "train" / "000001.tar"
    content = bytearray(shard.read_bytes())
    content[5 * 512 + 200] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=rf"000001.tar is damaged: its SHA-256 is .*{MEND}"):
        module(folder)


def test_whole_shards_are_read_once_and_remembered(folder, monkeypatch):
    module(folder)
    monkeypatch.setattr(
        "vqvae2.data.latent_shards._verify_shard", lambda path, *_: pytest.fail(f"read {path}")
    )
    module(folder)


def test_a_folder_that_cannot_be_written_is_verified_each_time(folder):
    (folder / VERIFIED).mkdir()  # stands in for a read-only folder, which does not stop root
    for _ in range(2):
        assert len(epoch_of(module(folder).train_dataloader(), 0)) == 5


def agree(folder, file, *, num_samples=None):
    """Makes the manifest agree with a changed shard, as an attacker or a bug would."""
    content = (folder / file).read_bytes()
    split = file.split("/")[0]

    def edit(manifest):
        entry = next(shard for shard in manifest["splits"][split] if shard["file"] == file)
        entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        if num_samples is not None:
            manifest["num_samples"][split] += num_samples - entry["num_samples"]
            entry["num_samples"] = num_samples

    edit_manifest(folder, edit)


def replace_member(path, name, content):
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    with tarfile.open(path, "w") as tar:
        for member, payload in {**members, name: content}.items():
            info = tarfile.TarInfo(member)
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle of a shard was run",))


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("top.npy", npy(np.array([Bomb()] * 8, dtype=object)), "top.npy is object"),
        ("top.npy", pickle.dumps(Bomb()), "top.npy is not an array"),
        ("top.npy", npy(np.zeros((8, 2, 2), np.uint16)), r"wanted uint16 \['n', 2, 3\]"),
        ("top.npy", npy(np.zeros((8, 2, 3), np.int64)), "top.npy is int64"),
        ("top.npy", npy(np.zeros((7, 2, 3), np.uint16)), r"lengths \[7, 8\]"),
        ("top.npy", npy(np.zeros((8, 2, 3), np.uint16))[:-2], "too few or too many"),
        ("top.npy", npy(np.full((8, 2, 3), 70, np.uint16)), "codes of level 'top' go from 70 to 70"),
        ("label.npy", npy(np.full(8, 5, np.int64)), "labels go from 5 to 5, wanted -1 to 4"),
        ("mid.npy", npy(np.zeros((8, 2, 3), np.uint16)), "has the members"),
    ],
)
def test_a_shard_with_wrong_members_is_refused_without_unpickling(folder, member, content, message):
    replace_member(folder / "train" / "000000.tar", f"000000-0001.{member}", content)
    agree(folder, "train/000000.tar")
    with pytest.raises(ValueError, match=rf"train/000000.tar is damaged: .*{message}.*{MEND}"):
        module(folder)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (lambda tar: tar[-1].offset, "has the members"),  # at a member's border
        (lambda tar: tar[-1].offset + 300, "has the members"),  # in a header
        (lambda tar: tar[-1].offset_data + 40, "cannot be read as a tar"),  # in a payload
        (lambda tar: 0, "0 bytes"),
    ],
)
def test_a_cut_shard_is_refused_even_if_the_manifest_agrees(folder, kept, message):
    shard = folder / "train" / "000001.tar"
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    shard.write_bytes(shard.read_bytes()[: kept(members)])
    agree(folder, "train/000001.tar")
    with pytest.raises(ValueError, match=rf"000001.tar.* {message}.*{MEND}"):
        module(folder)


def test_a_manifest_that_counts_other_samples_than_the_shard_holds(folder):
    agree(folder, "train/000000.tar", num_samples=21)
    with pytest.raises(ValueError, match="holds 20 samples, the manifest says 21"):
        module(folder)


def test_latents_of_another_autoencoder():
    check_autoencoder(SPEC, SPEC.autoencoder, codes="runs/demo/latents", checkpoint="x.ckpt")
    with pytest.raises(ValueError, match=f"a1a1a1a1.*x.ckpt holds.*b2b2b2b2.*{MEND}"):
        check_autoencoder(SPEC, "b2" * 32, codes="runs/demo/latents", checkpoint="x.ckpt")
