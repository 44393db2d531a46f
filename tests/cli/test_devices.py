"""More devices than there are end a command before anything starts; nothing waits for processes of nobody."""

import os

import pytest
import torch
from jsonargparse import Namespace

from tests.cli.fake_job import JOB, failure, write
from vqvae2.cli.composition import UsageError
from vqvae2.cli.usage import check_devices


@pytest.fixture
def machine(monkeypatch):
    """One of so many cores and GPUs."""

    def make(cores, gpus):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return make


def trainer(devices, accelerator="auto", num_nodes=1):
    return Namespace(devices=devices, accelerator=accelerator, num_nodes=num_nodes)


@pytest.mark.parametrize(
    ("cores", "gpus", "asked", "message"),
    [
        (2, 0, trainer(100, "cpu"), "'trainer.devices' is 100, but .* 0 GPUs and 2 cores"),
        (2, 0, trainer("100"), "0 GPUs and 2 cores: set --trainer.devices 2 or fewer"),
        (2, 0, trainer(5), "'trainer.devices' is 5"),
        (64, 0, trainer(65, "cpu"), "64 cores"),
        (2, 8, trainer(5, "cpu"), "'trainer.devices' is 5, but .* 8 GPUs and 2 cores"),
        (64, 8, trainer(9), "'trainer.devices' is 9, but this machine has 8 GPUs: --trainer.devices 8"),
        (64, 8, trainer("9", "gpu"), "8 GPUs"),
        (64, 0, trainer(1, "cuda"), "'trainer.devices' is 1, but .* 0 GPUs: --trainer.accelerator cpu"),
    ],
)
def test_devices_that_are_not_there(machine, cores, gpus, asked, message):
    machine(cores, gpus)
    with pytest.raises(UsageError, match=message):
        check_devices(asked, {})


@pytest.mark.parametrize(
    ("cores", "gpus", "asked"),
    [
        (2, 0, trainer(2, "cpu")),
        (1, 0, trainer(4)),  # to try things out
        (64, 0, trainer(64, "cpu")),
        (2, 8, trainer(8)),
        (2, 8, trainer("auto")),
        (2, 0, trainer("auto", "cpu")),
        (2, 8, trainer([0, 7], "gpu")),
        (2, 8, trainer(-1, "gpu")),
    ],
)
def test_devices_that_are(machine, cores, gpus, asked):
    machine(cores, gpus)
    check_devices(asked, {})


@pytest.mark.parametrize("rank", ["LOCAL_RANK", "SLURM_PROCID"])
def test_processes_that_a_launcher_has_started_may_have_one_core_each(machine, rank):
    machine(1, 0)
    check_devices(trainer(8, "cpu"), {rank: "3"})


def test_several_nodes_need_somebody_who_starts_them(machine):
    machine(2, 0)
    with pytest.raises(UsageError, match=r"'trainer.num_nodes' is 2, but nothing starts the other nodes"):
        check_devices(trainer(1, num_nodes=2), {"HOME": "/"})
    for name in ("MASTER_ADDR", "SLURM_NTASKS"):
        check_devices(trainer(1, num_nodes=2), {name: "x"})


def test_a_command_with_100_devices_ends_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "job.yaml", JOB | {"trainer": JOB["trainer"] | {"default_root_dir": "run"}})
    cores = len(os.sched_getaffinity(0))
    for devices in (100, 10**6):
        status, message = failure(
            capsys, "fit", "-c", "job.yaml", "--trainer.devices", str(max(devices, cores + 5))
        )
        assert (status, f"{cores} cores" in message) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]
