"""The order of samples: properties that every rank and every epoch has to keep."""

import pytest

from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.data.order import ChunkBatches, EpochBatches, batch_bounds


def on_ranks(monkeypatch, sampler, world_size):
    """The batches of each rank, as lists of samples."""
    monkeypatch.setattr(distributed, "world_size", lambda: world_size)
    per_rank = []
    for rank in range(world_size):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        batches = [[sample for _, sample in batch] for batch in sampler]
        assert len(sampler) == len(batches)
        per_rank.append(batches)
    return per_rank


def flat(batches):
    return [sample for batch in batches for sample in batch]


def epochs(num_samples=100, batch=8, shuffle=True, seed=0):
    return EpochBatches(num_samples, global_batch_size=batch, shuffle=shuffle, seed=seed)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_samples", [12, 13, 25, 97])
def test_every_sample_once_and_no_rank_without_a_batch(monkeypatch, num_samples, world_size):
    ranks = on_ranks(monkeypatch, epochs(num_samples, batch=12), world_size)
    assert sorted(sample for rank in ranks for sample in flat(rank)) == list(range(num_samples))
    for batches in zip(*ranks, strict=True):  # strict: all ranks take the same number of steps
        sizes = [len(batch) for batch in batches]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_see_together_what_one_rank_sees(monkeypatch, world_size):
    (alone,) = on_ranks(monkeypatch, epochs(), 1)
    ranks = on_ranks(monkeypatch, epochs(), world_size)
    assert [flat(batches) for batches in zip(*ranks, strict=True)] == alone


def test_the_last_two_batches_share_what_is_left():
    assert batch_bounds(16, 8, world_size=1) == [(0, 8), (8, 16)]
    assert batch_bounds(17, 8, world_size=1) == [(0, 8), (8, 13), (13, 17)]
    assert batch_bounds(17, 8, world_size=4) == [(0, 8), (8, 13), (13, 17)]
    assert batch_bounds(3, 8, world_size=2) == [(0, 3)]
    assert batch_bounds(5, 2, world_size=2) == [(0, 2), (2, 5)]  # halves of 2 and 1 would leave a rank out
    with pytest.raises(ValueError, match="3 samples cannot be shared among 4 ranks"):
        batch_bounds(3, 8, world_size=4)


def test_the_order_follows_from_seed_and_epoch(monkeypatch):
    def order(seed, epoch):
        sampler = epochs(seed=seed)
        sampler.sampler.set_epoch(epoch)  # as Lightning calls it
        assert {marked for batch in sampler for marked, _ in batch} == {epoch}
        return tuple(flat(on_ranks(monkeypatch, sampler, 1)[0]))

    orders = {(seed, epoch): order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(set(orders.values())) == len(orders)
    assert all(order(*key) == found for key, found in orders.items())


def test_without_shuffling_it_is_the_order_of_the_data(monkeypatch):
    sampler = epochs(shuffle=False)
    sampler.set_epoch(5)
    assert flat(on_ranks(monkeypatch, sampler, 1)[0]) == list(range(100))


@pytest.mark.parametrize("world_size", [2, 3, 7])
@pytest.mark.parametrize("finished", [(), (0, 3), (5,), range(6)])
def test_a_chunk_is_cut_into_the_same_batches_on_one_rank_whatever_the_world(
    monkeypatch, world_size, finished
):
    (whole,) = on_ranks(monkeypatch, ChunkBatches(103, batch_size=6, chunk_size=20), 1)
    assert flat(whole) == list(range(103))
    chunks = ChunkBatches(103, batch_size=6, chunk_size=20, finished=finished)
    assert chunks.num_finished == sum(sample // 20 in finished for sample in range(103))
    ranks = on_ranks(monkeypatch, chunks, world_size)
    assert all(ranks)  # a rank without a chunk has an empty batch
    dealt = sorted(batch for batches in ranks for batch in batches if batch)
    assert dealt == [batch for batch in whole if batch[0] // 20 not in finished]
    owned = [{batch[0] // 20 for batch in batches if batch} for batches in ranks]
    assert sum(map(len, owned)) == 6 - len(finished)  # a chunk belongs to one rank
    assert len(owned[0]) - min(map(len, owned)) <= 1


def test_real_ranks_ask_when_they_iterate():
    sampler = epochs(num_samples=21, batch=4)  # made before there is a process group
    ranks = run_ranks(lambda: [[sample for _, sample in batch] for batch in sampler])
    alone = [[sample for _, sample in batch] for batch in sampler]
    assert [flat(batches) for batches in zip(*ranks, strict=True)] == alone
