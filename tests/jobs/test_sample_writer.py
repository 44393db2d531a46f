"""Reruns of the sample job: what is missing is made, nothing is made twice, nothing is lost."""

import json
import os

import pytest

from tests.checkpoints import save_chain
from tests.killed import kill_at_rename, survives_rename
from tests.ranks import run_ranks
from tests.sample_job import files, sample
from vqvae2 import distributed
from vqvae2.jobs.sample import SampleModule

NUM_RENAMES = 1 + 3 + 3  # job.json, three shards, scores.csv, grid.png, manifest.json


@pytest.fixture
def job(tmp_path, one_thread):
    """Calls `sample` with a small chain of priors: folder, options."""
    _, autoencoder, priors = save_chain(tmp_path)
    return lambda folder, **options: sample(tmp_path / folder, autoencoder, priors, **options)


@pytest.fixture
def sampled(monkeypatch):
    """Numbers of the images sampled from now on in this process."""
    numbers = []
    step = SampleModule.predict_step

    def spy(self, batch, *args):
        numbers.extend(batch.index.tolist())
        return step(self, batch, *args)

    monkeypatch.setattr(SampleModule, "predict_step", spy)
    return numbers


def on_ranks(world_size, work, *args):
    def as_lightning_expects():
        os.environ["LOCAL_RANK"] = str(distributed.rank())  # Lightning then starts no processes itself
        work(*args)

    run_ranks(as_lightning_expects, world_size)


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("number", range(1, NUM_RENAMES + 1))
def test_a_killed_job_is_completed_to_the_same_bytes(job, tmp_path, sampled, number):
    wanted = files(job("whole"))
    assert not survives_rename(number, lambda: job("killed"))
    left = files(tmp_path / "killed")
    shards = {name for name in left if name.endswith(".tar")}
    assert len(shards) == min(max(number - 2, 0), 3)
    assert all(left[name] == wanted[name] for name in shards)  # what is in its place is whole
    assert "manifest.json" not in left
    sampled.clear()
    assert files(job("killed")) == wanted
    assert sampled == list(range(5 * len(shards), 12))


def test_the_renames_are_all_there_are(job):
    assert survives_rename(NUM_RENAMES + 1, lambda: job("whole"))


@pytest.mark.parametrize("second_world", [1, 2])
def test_ranks_that_are_killed_and_another_number_of_ranks(job, tmp_path, second_world):
    on_ranks(1, job, "whole")

    def work():
        if distributed.rank() == 0:
            kill_at_rename(3)  # its second shard, the third of all
        job("killed")

    with pytest.raises(AssertionError):
        on_ranks(2, work)
    assert {"000000.tar", "000001.tar"} <= set(files(tmp_path / "killed"))
    assert "000002.tar" not in files(tmp_path / "killed")
    on_ranks(second_world, job, "killed")  # with two, one has nothing to do
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_finished_folder_is_left_alone(job, sampled, capsys):
    folder = job("samples")
    before = times(folder)
    sampled.clear()
    job("samples", batch_size=4)  # which changes no image
    assert "samples is finished: 12 samples" in capsys.readouterr().out
    assert (times(folder), sampled) == (before, [])


def test_more_of_the_same_keeps_what_is_whole(job, sampled):
    wanted = files(job("whole", per_class=7))
    folder = job("samples")
    sampled.clear()
    job("samples", per_class=7)
    assert files(folder) == wanted
    assert sampled == list(range(10, 21))  # the file of images 10 and 11 was not full


def test_a_killed_job_can_ask_for_more(job, tmp_path):
    wanted = files(job("whole", per_class=7))
    assert not survives_rename(4, lambda: job("killed"))
    assert files(job("killed", per_class=7)) == wanted


def test_fewer_would_throw_images_away(job):
    before = files(job("samples"))
    with pytest.raises(ValueError, match=r"a job of 12 samples, this one asks for 6.*overwrite"):
        job("samples", per_class=2)
    assert files(job("samples")) == before
    assert len(files(job("samples", per_class=2, writer={"overwrite": True}))) == 2 + 4


@pytest.mark.parametrize(
    "damage", ["cut", "gone", "flipped", "strange", "cut, unfinished", "strange, unfinished"]
)
def test_damaged_files_are_made_again(job, sampled, damage):
    folder = job("samples")
    wanted = files(folder)
    path = folder / "000001.tar"
    content = path.read_bytes()
    unfinished = damage.endswith("unfinished")  # no manifest knows the file's hash
    flipped = content[:3000] + bytes([content[3000] ^ 1]) + content[3001:]
    other = (folder / "000000.tar").read_bytes()
    cut = content[: len(content) // 2]
    path.write_bytes({"cut": cut, "gone": b"", "flipped": flipped, "strange": other}[damage.split(",")[0]])
    if damage == "gone":
        path.unlink()
    if unfinished:
        (folder / "manifest.json").unlink()
    sampled.clear()
    job("samples")
    assert files(folder) == wanted
    assert sampled == list(range(5, 10))


@pytest.mark.parametrize("name", ["scores.csv", "grid.png", "manifest.json"])
def test_what_describes_the_samples_is_made_again_from_them(job, sampled, name):
    folder = job("samples")
    wanted = files(folder)
    (folder / name).unlink()
    sampled.clear()
    job("samples")
    assert (files(folder), sampled) == (wanted, [])


DIFFERENCES = {
    "seed": ({"seed": 5}, "its seed is 0, this job's is 5"),
    "draw": ({"temperatures": [1.0, 0.5]}, r"its draws.bottom.temperature is 1.0, this job's is 0.5"),
    "classes": ({"classes": [2, 1]}, r"its labels is \[0, 1, 2\], this job's is \[2, 1\]"),
    "chunks": ({"chunk_size": 6}, "its chunk_size is 5, this job's is 6"),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_another_jobs_folder_is_refused_or_replaced(job, name):
    options, message = DIFFERENCES[name]
    before = files(job("samples"))
    with pytest.raises(ValueError, match=message):
        job("samples", **options)
    assert files(job("samples")) == before
    wanted = files(job("fresh", **options))
    assert files(job("samples", **options, writer={"overwrite": True})) == wanted


def test_other_weights_are_another_job(job, tmp_path):
    job("samples")
    (tmp_path / "other").mkdir()
    _, autoencoder, priors = save_chain(tmp_path / "other", residual=6)
    with pytest.raises(ValueError, match="its autoencoder is"):
        sample(tmp_path / "samples", autoencoder, priors)


def test_a_replaced_job_that_is_killed_leaves_none_of_the_old_one(job, tmp_path):
    wanted = files(job("whole", seed=1))
    folder = job("samples")
    assert not survives_rename(3, lambda: job("samples", seed=1, writer={"overwrite": True}))
    assert [name for name in files(folder) if name.endswith(".tar")] == ["000000.tar"]
    assert files(job("samples", seed=1)) == wanted


def test_shards_that_do_not_say_of_which_job(job):
    folder = job("samples")
    (folder / "job.json").unlink()
    with pytest.raises(ValueError, match=r"holds shards, but no job\.json"):
        job("samples")
    (folder / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job\.json cannot be read"):
        job("samples")


def test_strangers_are_left_alone(job):
    folder = job("samples")
    strangers = [folder / "mine.tar", folder / "deeper" / "000009.tar"]
    for path in strangers:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    job("samples", per_class=1, writer={"overwrite": True})
    assert all(path.exists() for path in strangers)
    assert sorted(path.name for path in folder.glob("0*.tar")) == ["000000.tar"]
    assert json.loads((folder / "job.json").read_text())["num_samples"] == {"samples": 3}
