"""One live run in a folder: who is refused, and what a killed run leaves behind."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import time

import pytest
import yaml

from tests import fit_runs
from tests.checkpoints import save_autoencoder
from tests.fake_jobs import FakeModule
from tests.sample_job import files
from tests.training.training_run import write_images
from vqvae2.cli import suite as cli
from vqvae2.jobs.encode import EncodeModule
from vqvae2.runs.folder_lock import locked

FORKS = multiprocessing.get_context("fork")


def held(folder, verb="fit"):
    """Takes and gives back the lock; the message of a refusal, None without one."""
    try:
        with locked(folder, verb, "Wait."):
            return None
    except ValueError as error:
        return str(error)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of `run` and has a child of its own, which sleeps."""
    told, tells = FORKS.Pipe(duplex=False)

    def hold():
        with locked(tmp_path / "run", "fit", ""):
            child = FORKS.Process(target=time.sleep, args=(60,))
            child.start()
            tells.send(child.pid)
            time.sleep(60)

    process = FORKS.Process(target=hold)
    process.start()
    child = told.recv()
    yield process
    process.kill()
    process.join()
    os.kill(child, signal.SIGKILL)


def test_a_second_run_is_refused_until_the_first_is_killed_though_its_child_lives_on(tmp_path, holder):
    folder = tmp_path / "run"
    refusal = held(folder)
    assert f"{folder} is in use: process {holder.pid} on {socket.gethostname()} runs 'fit'" in refusal
    assert held(folder) == refusal  # asking has not taken it away
    assert held(folder, "predict") is held(tmp_path / "other") is None  # another kind, another folder
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (folder / ".fit.lock").exists()
    with locked(folder, "fit", ""):
        facts = json.loads((folder / ".fit.lock").read_text())
    assert (facts["host"], facts["process"]) == (socket.gethostname(), os.getpid())


def test_nothing_is_left_of_a_lock_but_what_the_run_has_written(tmp_path):
    assert held(tmp_path / "a/b") is None
    with locked(tmp_path / "c/d", "fit", ""):
        (tmp_path / "c/metrics.csv").touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["c", "c/metrics.csv"]


def test_a_lock_that_its_holder_is_just_removing_is_taken_anew(tmp_path, monkeypatch):
    """Between opening the file and locking it, the file goes: two would hold two files of one name."""
    (tmp_path / ".fit.lock").touch()
    lockf, calls = fcntl.lockf, []

    def lock(descriptor, operation):
        if not calls:
            (tmp_path / ".fit.lock").unlink()
        calls.append(descriptor)
        lockf(descriptor, operation)

    monkeypatch.setattr(fcntl, "lockf", lock)
    with locked(tmp_path, "fit", ""):
        assert json.loads((tmp_path / ".fit.lock").read_text())["process"] == os.getpid()
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["LOCAL_RANK", "RANK", "SLURM_PROCID", "NODE_RANK"])
def test_the_ranks_of_a_run_are_one(tmp_path, holder, monkeypatch, name):
    monkeypatch.setenv(name, "0")
    assert "is in use" in held(tmp_path / "run")
    monkeypatch.setenv(name, "1")
    assert held(tmp_path / "run") is None


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, monkeypatch):
    def lock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lock)
    with pytest.warns(UserWarning, match=r"without locks .*nothing keeps a second 'fit' from") as warned:
        assert held(tmp_path) is None
    assert len(warned) == 1
    assert list(tmp_path.iterdir()) == []


def test_fits_under_a_running_one_are_refused_and_harm_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump(
            {
                "trainer": {**fit_runs.QUIET, **fit_runs.STEPS, "default_root_dir": "run"},
                "model": {"class_path": "tests.fake_jobs.FakeModule", "init_args": {"hidden": 1}},
                "data": {"class_path": "tests.fake_jobs.FakeData"},
            }
        )
    )

    def waits(rank):
        step = FakeModule.training_step

        def training_step(self, batch):
            if self.global_step == 5:
                (tmp_path / "halfway").touch()
                while not (tmp_path / "go").exists():
                    time.sleep(0.01)
            return step(self, batch)

        FakeModule.training_step = training_step

    [first] = fit_runs.start(tmp_path, before=waits)
    while not (tmp_path / "halfway").exists():
        time.sleep(0.01)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    for options in ([], ["--resume", "false"], ["--trainer.default_root_dir", f"{tmp_path}/run"]):
        with pytest.raises(SystemExit) as end:
            cli.main(["fit", "-c", "job.yaml", *options])
        assert end.value.code == 1
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert f"is in use: process {first.pid} on {socket.gethostname()} runs 'fit' there" in line
        assert "--trainer.default_root_dir" in line
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before
    cli.main(["validate", "-c", "job.yaml", "--ckpt_path", "run/last.ckpt"])  # a look at it is allowed
    (tmp_path / "go").touch()
    assert fit_runs.wait([first]) == [0], fit_runs.said(tmp_path)
    steps = [row["step"] for row in fit_runs.final_state(tmp_path)["metrics"] if row["train/loss"]]
    assert steps == [str(step) for step in range(13)]


def test_a_second_job_into_one_output_folder_is_refused(tmp_path, capsys, monkeypatch):
    """Whatever its own run folder is; another output folder is free."""
    monkeypatch.chdir(tmp_path)
    checkpoint, _ = save_autoencoder(tmp_path / "autoencoder.ckpt", channels=3)
    content = {
        "trainer": {**fit_runs.QUIET, "accelerator": "cpu", "default_root_dir": "one"},
        "model": {
            "class_path": "vqvae2.jobs.encode.EncodeModule",
            "init_args": {"checkpoint": checkpoint},
        },
        "data": fit_runs.image_data(write_images(tmp_path), num_workers=0),
    }
    writer = {"class_path": "vqvae2.jobs.latent_writer.LatentWriter", "init_args": {"folder": "latents"}}
    content["trainer"]["callbacks"] = [writer]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))

    def waits(rank):
        step = EncodeModule.predict_step

        def predict_step(self, *args):
            (tmp_path / "halfway").touch()
            while not (tmp_path / "go").exists():
                time.sleep(0.01)
            return step(self, *args)

        EncodeModule.predict_step = predict_step

    [first] = fit_runs.start(tmp_path, verb="predict", before=waits)
    while not (tmp_path / "halfway").exists():
        time.sleep(0.01)
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", "-c", "job.yaml", "--trainer.default_root_dir", "two"])
    assert end.value.code == 1
    assert (
        f"error: latents is in use: process {first.pid} on {socket.gethostname()}" in capsys.readouterr().err
    )
    elsewhere = ["--trainer.callbacks", "vqvae2.jobs.latent_writer.LatentWriter"]
    cli.main(["predict", "-c", "job.yaml", *elsewhere, "--trainer.callbacks.folder", "others"])
    (tmp_path / "go").touch()
    assert fit_runs.wait([first]) == [0], fit_runs.said(tmp_path)
    assert files(tmp_path / "latents") == files(tmp_path / "others")
