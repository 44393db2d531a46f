"""Fixtures for tests of several folders."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """As many as processes have that a test forks and kills: with more, sums are rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
