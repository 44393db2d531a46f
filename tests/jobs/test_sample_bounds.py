"""Sample jobs that are asked for more than there can be: refused before anything of that length exists."""

import resource
import shutil
import sys
from collections import namedtuple

import pytest

from tests.checkpoints import save_chain
from tests.sample_job import sample
from vqvae2.data.order import ChunkBatches
from vqvae2.jobs.requests import SampleRequests

TERA = 10**13


@pytest.fixture
def little_memory():
    """Not enough for a list of 10^9 entries."""
    if sys.platform != "linux":
        pytest.skip("address space is bounded on Linux only")
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"per_class": TERA}, "30,000,000,000,000 samples, which is more than 1,000,000 files of 5"),
        ({"per_class": 10**30}, "more than 1,000,000 files"),  # no index counts so far
        ({"per_class": {0: TERA, 1: TERA}}, "20,000,000,000,000 samples, which is more"),
        ({"per_class": {0: TERA, 1: 1}}, "10,000,000,000,001 images before their labels repeat"),
        ({"per_class": TERA, "chunk_size": TERA}, "30,000,000,000,000 samples take at least 153,600,000 GB"),
        ({"per_class": TERA, "chunk_size": TERA, "batch_size": TERA}, "take at least"),
    ],
)
def test_absurd_counts_are_refused(tmp_path, little_memory, request_, message):
    _, autoencoder, priors = save_chain(tmp_path)
    with pytest.raises(ValueError, match=message):
        sample(tmp_path / "samples", autoencoder, priors, **request_)
    assert not (tmp_path / "samples").exists()


def test_a_job_larger_than_the_free_space_is_refused_but_not_for_what_it_has_written(tmp_path, monkeypatch):
    """A sample takes 10 blocks of 512 bytes at least: header and content of each of 5 members of a tar."""
    _, autoencoder, priors = save_chain(tmp_path)
    space = namedtuple("space", "total used free")

    def free(size):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: space(2 * size, size, size))

    free(12 * 10 * 512 - 1)
    with pytest.raises(ValueError, match="12 samples take at least"):
        sample(tmp_path / "samples", autoencoder, priors)
    free(12 * 10 * 512)
    folder = sample(tmp_path / "samples", autoencoder, priors)
    (folder / "000002.tar").unlink()
    free(2 * 10 * 512)
    sample(folder, autoencoder, priors)  # two samples are missing, and there is room for them
    assert (folder / "000002.tar").is_file()


def test_what_would_fit_is_not_listed_before_it_is_sampled(little_memory):
    """10^11 images in 10^6 files and 10^11 batches: only the files are counted."""
    batches = ChunkBatches(10**11, batch_size=1, chunk_size=10**5)
    assert len(batches) == batches.num_mine == 10**11
    assert next(iter(batches)) == [(0, 0)]
    data = SampleRequests(per_class={0: 3, 1: 10**5}, batch_size=1)
    assert data.pattern(2)[:7] == [0, 1, 0, 1, 0, 1, 1]
    assert len(data.pattern(2)) == 100_003
