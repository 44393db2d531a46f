"""Runs that are told to stop: by signals, by the clock; on one rank or two, under SLURM or not."""

import functools
import multiprocessing
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests import fit_runs
from tests.checkpoints import save_autoencoder
from tests.fake_jobs import FakeModule
from tests.fit_runs import final_state, first_difference, run, said, start, wait, write_config
from tests.sample_job import files
from tests.training.training_run import write_images
from vqvae2.jobs.encode import EncodeModule
from vqvae2.runs.preemption import (
    INTERRUPTED,
    RESUMABLE,
    Stopped,
    StopRequest,
    requeue,
    restarted,
    slurm_job,
)
from vqvae2.training.prior import PriorModule


@pytest.fixture
def job(tmp_path, latents) -> Callable[..., Path]:
    def make(name: str, workers: int = 0, **trainer: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        model = fit_runs.top_prior(dropout=0.3)
        data = fit_runs.latent_data(latents, num_workers=workers)
        return write_config(folder / "job.yaml", model=model, data=data, **trainer).parent

    return make


@pytest.fixture
def whole(job):
    """The state that an uninterrupted run ends with."""
    folder = job("whole")
    assert run(folder) == [0], said(folder)
    return final_state(folder)


def signals_itself(signum: int, step: str, call: int, rank: int = 0) -> Callable[[int], None]:
    """Sends this rank a signal in the middle of the `call`-th call of a method of the module."""

    def before(own_rank: int) -> None:
        function, calls = getattr(PriorModule, step), 0

        def counted(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == call and own_rank == rank:
                os.kill(os.getpid(), signum)
            return function(*args, **kwargs)

        setattr(PriorModule, step, counted)

    return before


def step_of(folder: Path) -> int:
    return torch.load(folder / "run/last.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize(
    ("signum", "where", "call", "step"),
    [
        (signal.SIGTERM, "training_step", 6, 6),
        (signal.SIGUSR1, "training_step", 5, 5),  # the last of an epoch
        (signal.SIGINT, "training_step", 6, 6),
        (signal.SIGTERM, "validation_step", 1, 4),  # the validation is begun again
        (signal.SIGTERM, "validation_step", 2, 4),
    ],
)
def test_a_signal_ends_the_run_after_its_batch_and_the_same_command_goes_on(
    job, whole, signum, where, call, step
):
    folder = job("stopped")
    ctrl_c = signum == signal.SIGINT
    status = INTERRUPTED if ctrl_c else RESUMABLE
    assert run(folder, before=signals_itself(signum, where, call)) == [status], said(folder)
    assert step_of(folder) == step
    name = "Ctrl-C" if ctrl_c else signal.Signals(signum).name
    assert said(folder).count("another Ctrl-C ends at once") == ctrl_c
    message = f"stopped by {name}; run/last.ckpt is at step {step}. The same command goes on from there."
    assert said(folder).endswith(message)
    assert run(folder) == [0], said(folder)
    assert first_difference(final_state(folder), whole) is None


@pytest.mark.parametrize(
    ("signum", "ranks", "workers"),
    [(signal.SIGTERM, 1, 4), (signal.SIGTERM, 2, 1), (signal.SIGINT, 1, 1), (signal.SIGINT, 2, 4)],
)
def test_a_signal_to_the_whole_process_group_leaves_the_workers_to_their_batches(
    job, whole, signum, ranks, workers
):
    """As `timeout`, launchers and terminals send it; the processes that load are of that group, too."""
    folder = job("stopped", workers=workers)

    def before(own_rank: int) -> None:
        step = PriorModule.training_step

        def training_step(self: PriorModule, *args: object) -> torch.Tensor:
            if self.global_step == 5 and own_rank == 0:
                children = len(multiprocessing.active_children())
                subprocess.run(["kill", f"-{int(signum)}", "--", f"-{os.getpgid(0)}"], check=False)
                print(f"{children} children were signalled")
            return step(self, *args)

        PriorModule.training_step = training_step

    status = INTERRUPTED if signum == signal.SIGINT else RESUMABLE
    assert run(folder, ranks=ranks, before=before) == [status] * ranks, said(folder)
    assert f"{2 * workers} children were signalled" in said(folder)  # of training and of validation
    assert "killed by signal" not in said(folder)
    assert step_of(folder) == 6
    if ranks == 1:
        assert run(folder) == [0], said(folder)
        assert first_difference(final_state(folder), whole) is None


def test_a_signal_in_the_validation_that_ends_an_epoch(job):
    """The fifth batch ends the epoch; its validation has to be run after the stop, and once."""
    options = {"val_check_interval": 5, "max_steps": 8}
    whole, stopped = job("whole", **options), job("stopped", **options)
    assert run(whole) == [0]
    assert run(stopped, before=signals_itself(signal.SIGTERM, "validation_step", 1)) == [RESUMABLE]
    assert step_of(stopped) == 5
    assert run(stopped) == [0], said(stopped)
    assert first_difference(final_state(stopped), final_state(whole)) is None


def test_a_signal_to_one_of_two_ranks_stops_both_after_the_same_step(job):
    folder = job("stopped")
    before = signals_itself(signal.SIGTERM, "training_step", 6, rank=1)
    assert run(folder, ranks=2, before=before) == [RESUMABLE] * 2, said(folder)
    assert step_of(folder) == 6
    assert said(folder).count("stopped by SIGTERM") == 1


def fake_scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    script = folder / "bin/scontrol"
    script.parent.mkdir()
    script.write_text(f"#!/bin/sh\n{line}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM])
def test_slurm_runs_the_job_again_after_its_signal_and_not_after_it_was_cancelled(
    job, tmp_path, monkeypatch, signum
):
    asked = tmp_path / "asked"
    # As SLURM does, it also ends the job that it queues again.
    fake_scontrol(tmp_path, monkeypatch, f'echo "$@" >> {asked}; kill -TERM $PPID')
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    folder = job("stopped")
    assert run(folder, before=signals_itself(signum, "training_step", 3)) == [RESUMABLE], said(folder)
    assert step_of(folder) == 3
    if signum == signal.SIGUSR1:
        assert asked.read_text() == "requeue 17\n"
        assert "SLURM job 17 is queued again" in said(folder)
    else:
        assert not asked.exists()


def test_under_srun_lightning_leaves_its_own_way_of_queueing_again_alone(job, tmp_path, monkeypatch):
    """With the variables of srun, Lightning would write a checkpoint of its own in the signal's handler."""
    asked = tmp_path / "asked"
    fake_scontrol(tmp_path, monkeypatch, f'echo "$@" >> {asked}')
    variables = {
        "JOB_ID": "18",
        "NTASKS": "1",
        "NTASKS_PER_NODE": "1",
        "NNODES": "1",
        "NODELIST": "localhost",
    }
    variables |= {"PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "train"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    folder = job("stopped")
    assert run(folder, before=signals_itself(signal.SIGUSR1, "training_step", 3)) == [RESUMABLE], said(folder)
    assert asked.read_text() == "requeue 18\n"
    assert sorted(path.name for path in (folder / "run").glob("*.ckpt")) == ["last.ckpt"]


def test_a_job_that_completes_itself_ends_at_once_and_is_queued_again(tmp_path, monkeypatch):
    asked = tmp_path / "asked"
    fake_scontrol(tmp_path, monkeypatch, f'echo "$@" >> {asked}')
    monkeypatch.setenv("SLURM_JOB_ID", "21")
    stays = r"SIGUSR1; finished files are kept.*SLURM job 21 is queued again"
    with StopRequest().at_hand(), pytest.raises(Stopped, match=stays) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.value.status == RESUMABLE
    assert asked.read_text() == "requeue 21\n"


def hangs_at(owner: type, step: str, call: int, signum: int) -> Callable[[int], None]:
    """Rank 0 signals its whole process group in a call of a method, and then would be busy for a minute."""

    def before(own_rank: int) -> None:
        function, calls = getattr(owner, step), 0

        @functools.wraps(function)  # Lightning looks at its arguments
        def counted(*args: object, **kwargs: object) -> object:
            nonlocal calls
            calls += 1
            if calls == call and own_rank == 0:
                subprocess.run(["kill", f"-{int(signum)}", "--", f"-{os.getpgid(0)}"], check=False)
                time.sleep(60)
            return function(*args, **kwargs)

        setattr(owner, step, counted)

    return before


@pytest.mark.parametrize(("signum", "ranks"), [(signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_a_signal_ends_a_job_that_writes_files_at_once_and_leaves_whole_ones(tmp_path, signum, ranks):
    checkpoint, _ = save_autoencoder(tmp_path / "autoencoder.ckpt", channels=3)
    images = write_images(tmp_path)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
        model = {
            "class_path": "vqvae2.jobs.encode.EncodeModule",
            "init_args": {"checkpoint": checkpoint},
        }
        writer = {"class_path": "vqvae2.jobs.latent_writer.LatentWriter", "init_args": {"folder": "run"}}
        content = {
            "trainer": {**fit_runs.QUIET, "accelerator": "cpu", "devices": 1, "default_root_dir": "run"},
            "model": model,
            "data": fit_runs.image_data(images, chunk_size=4, num_workers=1),
        }
        content["trainer"]["callbacks"] = [writer]
        (tmp_path / name / "job.yaml").write_text(yaml.safe_dump(content))
    assert run(tmp_path / "whole", verb="predict") == [0], said(tmp_path / "whole")

    folder = tmp_path / "stopped"
    ctrl_c = signum == signal.SIGINT
    before = hangs_at(EncodeModule, "predict_step", 3, signum)
    status = INTERRUPTED if ctrl_c else RESUMABLE
    assert run(folder, verb="predict", ranks=ranks, before=before) == [status] * ranks, said(folder)
    name = "Ctrl-C" if ctrl_c else "SIGTERM"
    message = f"stopped by {name}; finished files are kept. The same command goes on from there."
    assert said(folder).endswith(message)
    assert "Traceback" not in said(folder)
    assert not list(folder.rglob("*.part")) + list(folder.rglob("*.lock"))
    assert list(folder.rglob("*.tar"))
    assert not (folder / "run/manifest.json").exists()
    assert run(folder, verb="predict") == [0], said(folder)
    written, wanted = (files(each / "run") for each in (folder, tmp_path / "whole"))
    assert written == wanted


def test_a_rank_that_alone_is_signalled_waits_for_no_other(tmp_path):
    """Lightning's own handler would have all ranks take part in a broadcast, within the handler."""
    content = {
        "trainer": {**fit_runs.QUIET, "accelerator": "cpu", "default_root_dir": "run"},
        "model": {"class_path": "tests.fake_jobs.FakeModule", "init_args": {"hidden": 1}},
        "data": {"class_path": "tests.fake_jobs.FakeData"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))

    def before(rank: int) -> None:
        def predict_step(self: FakeModule, batch: torch.Tensor) -> torch.Tensor:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            while rank == 0 and not (tmp_path / "ended").exists():
                time.sleep(0.01)
            return batch

        FakeModule.predict_step = predict_step

    first, second = start(tmp_path, verb="predict", ranks=2, before=before)
    second.join(30)
    code = second.exitcode
    (tmp_path / "ended").touch()
    wait([first, second], timeout_s=20)
    assert code == RESUMABLE, said(tmp_path)


def test_a_signal_ends_a_test_at_once(tmp_path):
    content = {
        "trainer": {**fit_runs.QUIET, **fit_runs.STEPS, "default_root_dir": "run"},
        "model": {"class_path": "tests.fake_jobs.FakeModule", "init_args": {"hidden": 1}},
        "data": {"class_path": "tests.fake_jobs.FakeData"},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(content))
    assert run(tmp_path, "--trainer.max_steps", "1") == [0], said(tmp_path)
    for signum, status in ((signal.SIGTERM, RESUMABLE), (signal.SIGINT, INTERRUPTED)):
        before = hangs_at(FakeModule, "test_step", 2, signum)
        assert run(tmp_path, verb="test", before=before) == [status], said(tmp_path)
        assert said(tmp_path).endswith("finished files are kept. The same command goes on from there.")


def test_jobs_of_an_array_are_named_by_their_task_and_failures_are_said(tmp_path, monkeypatch):
    assert slurm_job({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2"}) == "5_2"
    assert slurm_job({}) is None
    fake_scontrol(tmp_path, monkeypatch, "echo no such job >&2; exit 1")
    assert requeue("5_2") == "job 5_2 is not queued again: no such job"
    monkeypatch.setenv("PATH", "")
    assert requeue("5_2") == "job 5_2 is not queued again: there is no scontrol here"
    assert restarted({"SLURM_RESTART_COUNT": "1"})
    assert not restarted({"TORCHELASTIC_RESTART_COUNT": "0"})


def test_the_time_limit_ends_a_run_between_two_batches_without_a_validation(job, whole):
    folder = job("stopped")

    def slow(rank: int) -> None:
        step = PriorModule.training_step

        def training_step(self: PriorModule, *args: object) -> torch.Tensor:
            if self.global_step == 5:
                time.sleep(3)
            return step(self, *args)

        PriorModule.training_step = training_step

    assert run(folder, "--trainer.max_time", "00:00:00:03", before=slow) == [RESUMABLE], said(folder)
    assert step_of(folder) == 6
    assert "stopped by its time limit (trainer.max_time); run/last.ckpt is at step 6" in said(folder)
    assert run(folder, "--trainer.max_time", "00:00:05:00") == [0], said(folder)  # of this start alone
    assert first_difference(final_state(folder), whole) is None


@pytest.mark.parametrize(
    ("signum", "code", "same_s", "second_s"),
    [(signal.SIGTERM, 2, 1.0, 3.0), (signal.SIGINT, 4, 0.1, 0.4)],  # people press twice within a second
)
def test_a_second_signal_ends_at_once_but_not_the_same_one_passed_on(
    monkeypatch, signum, code, same_s, second_s
):
    now, killed = 100.0, []
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(os, "kill", lambda pid, signum: killed.append(signum))
    request = StopRequest()
    with request.at_hand():
        request.listen()
        signal.raise_signal(signum)
        now = 100 + same_s
        signal.raise_signal(signum)
        assert (request.agreed(), killed) == ((code, False), [])
        now = 100 + second_s
        signal.raise_signal(signum)
        assert killed == [signum]
        assert signal.getsignal(signum) == signal.SIG_DFL


def test_signals_are_given_back_at_the_end():
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    with StopRequest().at_hand(), pytest.raises(Stopped, match="stopped by Ctrl-C") as stop:
        signal.raise_signal(signal.SIGINT)
    assert stop.value.status == INTERRUPTED
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before


def test_a_run_that_hangs_can_be_ended_by_a_second_signal(job):
    folder = job("hanging")

    def hang(rank: int) -> None:
        PriorModule.training_step = lambda *_: (Path("hangs").touch(), time.sleep(60))

    [process] = start(folder, before=hang)
    while not (folder / "hangs").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(2.2)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    assert wait([process], timeout_s=5) == [-signal.SIGTERM]
