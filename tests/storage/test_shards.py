"""Shards are found whole or damaged, whatever happened to them."""

import io
import tarfile

import numpy as np
import pytest

from vqvae2.storage.shards import index_members, npy_array, npy_bytes, read_member, write_tar

RECORDS = [
    {"__key__": f"{i:03d}", "png": bytes([i]) * (300 + 500 * i), "top.npy": b"x" * i} for i in range(5)
]


@pytest.fixture
def shard(tmp_path):
    return tmp_path / write_tar(tmp_path, "shard.tar", RECORDS, num_samples=5).file


def test_members_are_where_they_are_said_to_be(shard):
    found = index_members(shard)
    assert list(found) == [record["__key__"] for record in RECORDS]
    for record in RECORDS:
        members = found[record["__key__"]]
        assert list(members) == ["png", "top.npy"]
        assert all(read_member(shard, members[name]) == record[name] for name in members)


def test_no_cut_goes_unnoticed(shard):
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    for length in range(0, end + 1024, 128):  # behind the end mark there is only padding
        shard.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"shard\.tar"):
            index_members(shard)
    shard.write_bytes(whole[: end + 1024])
    assert len(index_members(shard)) == 5


def test_a_damaged_header_goes_not_unnoticed(shard):
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        headers = [member.offset for member in tar]
    for offset in headers:
        damaged = bytearray(whole)
        damaged[offset] ^= 1
        shard.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"shard\.tar"):
            index_members(shard)


def test_pickled_arrays_are_refused():
    array = np.arange(6, dtype="<u2").reshape(2, 3)
    assert np.array_equal(npy_array(npy_bytes(array)), array)
    file = io.BytesIO()
    np.save(file, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="Object arrays"):
        npy_array(file.getvalue())
