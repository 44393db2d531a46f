"""Features of a whole set: in the order of the data, whatever the batches and ranks were."""

import torch

from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.metrics.feature_set import FeatureSet

FEATURES = torch.randn(53, 6, generator=torch.Generator().manual_seed(0))


def collect(*parts):
    collected = FeatureSet(6)
    for part in parts:
        collected.update(FEATURES[part], part)
    return collected


def test_order_of_the_batches_does_not_matter():
    shuffled = torch.randperm(53, generator=torch.Generator().manual_seed(1))
    collected = collect(*shuffled.tensor_split(7))
    assert torch.equal(collected.gather(), FEATURES)
    assert len(collected) == 53


def test_images_that_come_twice_count_once():
    assert torch.equal(collect(torch.arange(40), torch.arange(35, 53), torch.tensor([0])).gather(), FEATURES)


def test_uneven_ranks_one_of_them_empty_have_all_of_it():
    def on_a_rank():
        parts = [torch.arange(0, 53, 2), torch.tensor([], dtype=torch.int64), torch.arange(1, 53, 2)]
        collected = (
            collect(*parts[distributed.rank()].tensor_split(3)) if distributed.rank() != 1 else collect()
        )
        return collected.gather()

    for found in run_ranks(on_a_rank, 3):
        assert torch.equal(found, FEATURES)


def test_half_precision_is_widened_and_gradients_are_let_go():
    collected = FeatureSet(6)
    collected.update(FEATURES.bfloat16().requires_grad_(), torch.arange(53))
    found = collected.gather()
    assert found.dtype == torch.float32
    assert not found.requires_grad


def test_reset_forgets():
    collected = collect(torch.arange(53))
    collected.reset()
    assert len(collected) == 0
    assert collected.gather().shape == (0, 6)
    collected.update(FEATURES[:2], torch.arange(2))
    assert torch.equal(collected.gather(), FEATURES[:2])
