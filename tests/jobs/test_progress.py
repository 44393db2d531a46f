"""The progress bar of jobs that write files counts images, over all ranks and reruns."""

import os
import re

import pytest
import yaml

from tests.checkpoints import save_chain
from tests.killed import survives_rename
from tests.ranks import run_ranks
from tests.sample_job import run, sample
from vqvae2 import distributed
from vqvae2.cli import suite as cli
from vqvae2.jobs import progress
from vqvae2.jobs.progress import ImageProgress
from vqvae2.jobs.requests import SampleRequests
from vqvae2.jobs.sample import SampleModule
from vqvae2.jobs.sample_writer import SampleWriter


class Bar:
    """Stands in for tqdm and remembers."""

    made = None

    def __init__(self, *, total, initial, disable, **_):
        Bar.made = self
        self.total, self.n, self.disable = total, initial, disable
        self.seen, self.closed = [initial], False

    def update(self, images):
        self.n += images
        self.seen.append(self.n)

    def close(self):
        self.closed = True


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Runs the sample job with a bar: 12 images in files of 5, batches of 2, 2 and 1."""
    monkeypatch.setattr(progress, "tqdm", Bar)
    _, autoencoder, priors = save_chain(tmp_path)

    def work(folder, **_):
        module = SampleModule(autoencoder=autoencoder, priors=priors, temperatures=[1.0, 1.0])
        data = SampleRequests(per_class=4, batch_size=2, chunk_size=5)
        run(module, data, SampleWriter(str(tmp_path / folder)), ImageProgress())
        assert Bar.made.closed
        return Bar.made

    return work


def test_every_image_counts_and_those_of_before_too(job):
    assert job("whole").seen == [0, 2, 4, 5, 7, 9, 10, 12]
    assert not survives_rename(3, lambda: job("killed"))
    bar = job("killed")
    assert (bar.seen, bar.total, bar.disable) == ([5, 7, 9, 10, 12], 12, False)
    assert job("killed").disable  # nothing is left to wait for


def test_one_bar_counts_for_all_ranks(job):
    def work():
        os.environ["LOCAL_RANK"] = str(distributed.rank())
        bar = job("samples")
        return bar.seen, bar.disable

    (first, shown), (_, hidden) = run_ranks(work)
    assert first == [0, 12 * 2 // 7, 12 * 4 // 7, 12 * 5 // 7, 12]  # rank 0 makes 7 of the 12
    assert (shown, hidden) == (False, True)


def test_the_command_shows_images_a_second_and_the_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    _, autoencoder, priors = save_chain(tmp_path)
    assert not survives_rename(3, lambda: sample(tmp_path / "run", autoencoder, priors))
    config = {
        "trainer": {"default_root_dir": "run", "accelerator": "cpu", "callbacks": [writer("run")]},
        "model": {
            "class_path": "vqvae2.jobs.sample.SampleModule",
            "init_args": {"autoencoder": autoencoder, "priors": priors, "temperatures": [1, 1]},
        },
        "data": {
            "class_path": "vqvae2.jobs.requests.SampleRequests",
            "init_args": {"per_class": 4, "batch_size": 3, "chunk_size": 5},
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(config))
    cli.main(["predict", "-c", "job.yaml"])
    shown = capsys.readouterr().out
    assert re.search(r" 5/12 \[00:00<\?", shown)
    assert re.search(r"100%.* 12/12 \[\d\d:\d\d<00:00, +\d+\.\d+ images/s\]", shown)
    assert "Wrote 7 samples" in shown
    assert "in addition to 5 samples from before: run" in shown
    cli.main(["predict", "-c", "job.yaml"])
    shown = capsys.readouterr().out
    assert "run is finished: 12 samples" in shown
    assert "images/s" not in shown


def writer(folder):
    return {"class_path": "vqvae2.jobs.sample_writer.SampleWriter", "init_args": {"folder": folder}}
