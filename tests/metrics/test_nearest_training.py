"""Nearest training images in a stream against whole matrices."""

import pytest
import torch

from tests.metrics import brute_force
from tests.ranks import run_ranks
from vqvae2 import distributed
from vqvae2.metrics.nearest_training import NearestTrainingImages


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TRAINING = draw(230, 40)
QUERIES = torch.cat([draw(9, 40, seed=1), TRAINING[[200, 3]]])


def search(queries, k, images, order=None, pieces=9):
    order = torch.arange(len(images)) if order is None else order
    found = NearestTrainingImages(queries, k)
    for index in order.tensor_split(pieces):
        found.update(images[index], index)
    return found.compute()


def assert_equal(found, expected):
    assert torch.equal(found.index, expected[1])
    torch.testing.assert_close(found.distance, expected[0], rtol=1e-14, atol=0)


@pytest.mark.parametrize("pieces", [1, 9, 40])
@pytest.mark.parametrize("k", [1, 6])
def test_features_find_what_a_whole_matrix_finds_in_any_order(k, pieces):
    expected = brute_force.nearest(QUERIES, TRAINING, k)
    shuffled = torch.randperm(230, generator=torch.Generator().manual_seed(2))
    assert_equal(search(QUERIES, k, TRAINING, pieces=pieces), expected)
    assert_equal(search(QUERIES, k, TRAINING, order=shuffled, pieces=pieces), expected)


def test_a_training_image_finds_itself_at_zero():
    found = search(QUERIES + 0.0, 2, TRAINING)
    assert found.index[-2:, 0].tolist() == [200, 3]
    assert found.distance[-2:, 0].tolist() == [0, 0]
    assert (found.distance[:-2] > 0).all()


@pytest.mark.parametrize("k", [1, 5])
def test_pixels_of_bytes_and_ties_by_the_lower_index(k):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 3, (90, 3, 2, 2), generator=generator, dtype=torch.uint8).repeat(2, 1, 1, 1)
    shuffled = torch.randperm(180, generator=generator)
    queries = images[:7]
    found = search(queries, k, images, order=shuffled)
    assert_equal(found, brute_force.nearest(queries.flatten(1), images.flatten(1), k))
    assert (found.distance[:, :2] == 0).all()
    assert found.index[:, 0].tolist() == list(range(7))


def test_large_images_near_each_other():
    base = draw(1, 3, 32, 32)
    images = base + 1e-3 * draw(60, 3, 32, 32, seed=4)
    expected = brute_force.nearest(images[5:9].flatten(1), images.flatten(1), 4)
    assert_equal(search(images[5:9], 4, images, pieces=4), expected)


def test_two_ranks_with_an_uneven_split_and_a_padded_image_equal_one():
    def on_a_rank():
        part = (torch.arange(50), torch.tensor([*range(50, 230), 0, 200]))[distributed.rank()]
        found = search(QUERIES, 6, TRAINING, order=part, pieces=4)
        return found.distance, found.index

    expected = brute_force.nearest(QUERIES, TRAINING, 6)
    for distance, index in run_ranks(on_a_rank, 2):
        assert torch.equal(index, expected[1])
        torch.testing.assert_close(distance, expected[0], rtol=1e-14, atol=0)


def test_a_rank_without_images_finds_what_the_others_do():
    def on_a_rank():
        found = NearestTrainingImages(QUERIES, 3)
        found.update(TRAINING[:0], torch.arange(0))
        if distributed.rank() == 1:
            found.update(TRAINING, torch.arange(230))
        return found.compute().index

    for index in run_ranks(on_a_rank, 2):
        assert torch.equal(index, brute_force.nearest(QUERIES, TRAINING, 3)[1])


def test_what_is_missing_is_said():
    found = NearestTrainingImages(QUERIES, 5)
    found.update(TRAINING[:3], torch.arange(3))
    with pytest.raises(ValueError, match="the 5 nearest of 3 training images"):
        found.compute()
    with pytest.raises(ValueError, match=r"shape \(12,\) .* queries of shape \(40,\)"):
        found.update(TRAINING[:3, :12], torch.arange(3))
    with pytest.raises(ValueError, match=r"1 of the 4 training images of a batch .* number 2"):
        found.update(TRAINING[:4].index_fill(0, torch.tensor([2]), torch.inf), torch.arange(4))
    with pytest.raises(ValueError, match="2 of the 11 queries"):
        NearestTrainingImages(QUERIES.index_fill(0, torch.tensor([0, 1]), torch.nan), 5)
    with pytest.raises(ValueError, match="found 3 of 0"):
        NearestTrainingImages(QUERIES[:0], 3)
