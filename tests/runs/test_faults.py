"""Faults in the middle of training, by the command line: what ends, within what time, and what is left.

Ranks are processes as torchrun starts them: rank, world size and address come from the environment.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time

import pytest
import torch
import yaml

from tests.training.training_run import NETWORK, write_images
from vqvae2 import distributed
from vqvae2.cli import suite as cli
from vqvae2.data.images import ImageBatch, ImageDataModule
from vqvae2.storage.checkpoint import read_checkpoint

STALL_S = 5  # the strategy's time-out in the test of a stalled rank


class FaultyImages(ImageDataModule):
    """Images of which one batch does harm: the one of optimiser step `step` on rank `rank`."""

    def __init__(self, *, fault: str | None = None, step: int = 0, rank: int = 0, **options) -> None:
        super().__init__(**options)
        self.fault, self.step, self.rank = fault, step, rank

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:
        training = self.trainer.training and self.trainer.global_step + 1 == self.step
        if not training or distributed.rank() != self.rank or self.fault is None:
            return batch
        if self.fault == "nan":
            return batch._replace(images=torch.full_like(batch.images, float("nan")))
        os.kill(os.getpid(), getattr(signal, self.fault))
        return batch


@pytest.fixture
def job(tmp_path):
    """Writes a config that validates, and saves, every 5 steps, and looks every 4; returns its path."""
    images = write_images(tmp_path)

    def write(trainer=None, schedule=1e-3, **fault):
        options = {
            "default_root_dir": str(tmp_path / "run"),
            "accelerator": "cpu",
            "max_steps": 12,
            "max_epochs": -1,
            "val_check_interval": 5,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 4,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [{"class_path": "vqvae2.runs.health.Health"}],
        }
        rate = {"class_path": "vqvae2.training.schedules.Constant", "init_args": {"learning_rate": schedule}}
        data = {"train": str(images / "train"), "val": str(images / "val"), "image_size": 8, "batch_size": 4}
        config = {
            "trainer": {**options, **(trainer or {})},
            "checkpoint": {"monitor": "val/loss"},
            "model": {
                "class_path": "vqvae2.training.autoencoder.AutoencoderModule",
                "init_args": {"schedule": rate, "beta": 0.25, "polyak": 0.9, **NETWORK},
            },
            "data": {"class_path": "tests.runs.test_faults.FaultyImages", "init_args": {**data, **fault}},
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


def fit(config, ranks=1, timeout_s=60, *options):
    """Runs the command on forked ranks: [(exit status, output)], and the seconds from the first end on.

    A rank that does not end in time is killed, as its status tells. A stopped one is not waited for.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank):
        for number in (1, 2):
            os.dup2(os.open(config.with_name(f"{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        places = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": ranks, "OMP_NUM_THREADS": 1}
        os.environ.update({name: str(value) for name, value in {**address, **places}.items()})
        torch.set_num_threads(1)
        cli.main(["fit", "-c", str(config), *options])

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    deadline, first_end = time.monotonic() + timeout_s, None
    while any(map(running, processes)) and time.monotonic() < deadline:
        if first_end is None and not all(map(running, processes)):
            first_end = time.monotonic()
        time.sleep(0.02)
    elapsed_s = time.monotonic() - (first_end or time.monotonic())
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
    logs = [config.with_name(f"{rank}.log").read_text() for rank in range(ranks)]
    return [(process.exitcode, log) for process, log in zip(processes, logs, strict=True)], elapsed_s


def running(process):
    """Whether a process is alive and not stopped by a signal."""
    try:
        with open(f"/proc/{process.pid}/stat") as file:
            return process.is_alive() and file.read().rpartition(")")[2].split()[0] != "T"
    except FileNotFoundError:
        return False


def saved(path):
    """The steps of a checkpoint whose weights, averages and codebooks are finite."""
    checkpoint = read_checkpoint(path)
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    return checkpoint["global_step"]


def two(timeout="0:30:00"):
    """Trainer options of two ranks."""
    strategy = {
        "class_path": "lightning.pytorch.strategies.DDPStrategy",
        "init_args": {"timeout": timeout, "process_group_backend": "gloo"},
    }
    return {"devices": 2, "strategy": strategy}


@pytest.mark.parametrize("ranks", [1, 2])
def test_nan_in_a_batch_ends_the_command_with_one_line_and_the_checkpoint_goes_on(job, tmp_path, ranks):
    trainer = two() if ranks == 2 else {}
    config = job(trainer, fault="nan", step=7, rank=ranks - 1)
    ended, _ = fit(config, ranks)
    last = tmp_path / "run/last.ckpt"
    for status, output in ended:
        assert status == 1
        [line] = [line for line in output.splitlines() if line.startswith("error:")]
        assert f"Training stopped at step 8: the loss of step 7 is nan (rank {ranks - 1})." in line
        assert f"last good checkpoint is {last}. Go on with --ckpt_path {last}" in line
        assert "Traceback" not in output
    assert saved(last) == saved(tmp_path / "run/best.ckpt") == 5
    # As the error says, with a lower learning rate, and with data that are mended.
    go_on = ["--ckpt_path", str(last), "--allow_inexact_resume", "true"]
    ended, _ = fit(job(trainer, schedule=5e-4), ranks, 60, *go_on)
    assert [status for status, _ in ended] == [0] * ranks
    assert saved(last) == 12


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_readable_image_ends_the_command_and_is_named_with_its_first_files(
    job, tmp_path, split
):
    """Found before the first step: by the first batch, or by Lightning's validation of two batches."""
    config = job(num_workers=1)
    paths = sorted((tmp_path / split).iterdir())
    for path in paths:
        path.write_bytes(path.read_bytes()[:40])
    [(status, output)], _ = fit(config)
    assert status == 1
    [line] = [line for line in output.splitlines() if line.startswith("error:")]
    first = ", ".join(path.name for path in paths[:3])
    assert f"none of the {len(paths)} {split} images of {tmp_path / split} can be read: {first}, …" in line
    assert "Traceback" not in output
    assert list((tmp_path / "run").glob("*.ckpt")) == []


def test_unreadable_images_in_the_first_validation_alone_are_no_error(job, tmp_path):
    """The first validation looks at two batches; the other images can be read."""
    config = job({"num_sanity_val_steps": 1})
    for path in sorted((tmp_path / "val").iterdir())[:4]:
        path.write_bytes(b"")
    [(status, output)], _ = fit(config)
    assert status == 0, output
    assert saved(tmp_path / "run/best.ckpt") > 0


def test_an_exploding_learning_rate_ends_the_command_and_leaves_no_bad_checkpoint(job, tmp_path):
    ended, _ = fit(job(schedule=1e4))
    [(status, output)] = ended
    assert status == 1
    assert "error: Training stopped at step 4: the " in output
    assert "There is no checkpoint from before that. Start anew with a lower learning rate" in output
    assert list((tmp_path / "run").glob("*.ckpt*")) == []


@pytest.mark.parametrize("killed", [0, 1])
def test_when_a_rank_is_killed_the_other_ends_with_an_error_at_once(job, tmp_path, killed):
    """Long before the time-out of half an hour: the connection breaks."""
    ended, elapsed_s = fit(job(two(), fault="SIGKILL", step=7, rank=killed), 2)
    assert ended[killed][0] == -signal.SIGKILL
    assert ended[1 - killed][0] == 1
    assert elapsed_s < 10
    assert saved(tmp_path / "run/last.ckpt") == 5


def test_when_a_rank_stalls_the_other_ends_with_an_error_after_the_time_out(job, tmp_path):
    config = job(two(f"0:00:0{STALL_S}"), fault="SIGSTOP", step=7, rank=1)
    ended, elapsed_s = fit(config, 2)
    assert ended[0][0] == 1
    assert STALL_S - 1 < elapsed_s < STALL_S + 10
    assert saved(tmp_path / "run/last.ckpt") == 5
