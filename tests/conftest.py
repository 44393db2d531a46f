"""Fixtures for tests of several folders."""

import pytest
import torch

from tests.training.training_run import write_images, write_latents


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of images of noise, in `train` and `val`; it must not be changed."""
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    """A folder of latents at random; it must not be changed."""
    return write_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def one_thread():
    """As many as processes have that a test forks and kills: with more, sums are rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
