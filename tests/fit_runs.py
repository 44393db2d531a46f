"""Whole training runs by the command line in forked processes, killed and started again; what they leave."""

import csv
import multiprocessing
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.checkpoints import PRIOR
from tests.training.training_run import NETWORK
from vqvae2.cli import suite as cli

QUIET = {"enable_progress_bar": False, "enable_model_summary": False}
STEPS = {
    "accelerator": "cpu",
    "devices": 1,
    "max_steps": 13,
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "val_check_interval": 4,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
}


def write_config(path: Path, *, model: dict, data: dict, **trainer: Any) -> Path:
    """A fit of 13 steps, validated every 4, whose run folder is `run` beside the config."""
    callbacks = [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]
    settings = {**QUIET, **STEPS, "callbacks": callbacks, "default_root_dir": "run", **trainer}
    content = {"trainer": settings, "model": model, "data": data, "checkpoint": {"monitor": "val/loss"}}
    path.write_text(yaml.safe_dump(content))
    return path


COSINE = {
    "class_path": "vqvae2.training.schedules.Cosine",
    "init_args": {"learning_rate": 0.001, "warmup": 2},
}
CONSTANT = {"class_path": "vqvae2.training.schedules.Constant", "init_args": {"learning_rate": 0.01}}


def autoencoder(**options: Any) -> dict:
    return {
        "class_path": "vqvae2.training.autoencoder.AutoencoderModule",
        "init_args": {"schedule": COSINE, "beta": 0.25, "polyak": 0.9, **NETWORK, **options},
    }


def hr_vqvae(**options: Any) -> dict:
    network = {name: value for name, value in NETWORK.items() if name not in ("num_levels", "num_codes")}
    network |= {"branch": 3, "depth": 3}
    return {
        "class_path": "vqvae2.training.hr_vqvae.HRVQVAEModule",
        "init_args": {"schedule": COSINE, "beta": 0.25, "polyak": 0.9, **network, **options},
    }


def image_data(images: Path, **options: Any) -> dict:
    where = {"train": str(images / "train"), "val": str(images / "val")}
    return {
        "class_path": "vqvae2.data.images.ImageDataModule",
        "init_args": {**where, "image_size": 8, "batch_size": 4, **options},
    }


def top_prior(**options: Any) -> dict:
    return {
        "class_path": "vqvae2.training.pixelsnail.TopPriorModule",
        "init_args": {"schedule": CONSTANT, "polyak": 0.5, "output_layers": 0, **PRIOR, **options},
    }


def path_prior(**options: Any) -> dict:
    network = {**PRIOR, "output_layers": 0, "conditioning_hidden": 8, "conditioning_blocks": 2}
    return {
        "class_path": "vqvae2.training.path_prior.PathPriorModule",
        "init_args": {"schedule": CONSTANT, "polyak": 0.5, **network, **options},
    }


def latent_data(latents: str, **options: Any) -> dict:
    return {
        "class_path": "vqvae2.data.latent_module.LatentDataModule",
        "init_args": {"latents": latents, "batch_size": 4, **options},
    }


def start(
    folder: Path,
    *args: str,
    verb: str = "fit",
    ranks: int = 1,
    before: Callable[[int], None] = lambda rank: None,
) -> list[Any]:
    """Starts `lightning VERB -c job.yaml ARGS` in `folder`, as torchrun would; what it says goes to `log`.

    The ranks are a process group of their own, whose number is the first one's.

    Args:
        folder: with `job.yaml`.
        args: more of the command line.
        verb: of the job.
        ranks: processes.
        before: called in each process at first, with its rank.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank: int) -> None:
        os.chdir(folder)
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)  # not to pytest
        torch.set_num_threads(1)
        os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [verb, "-c", "job.yaml", *args]
        if ranks > 1:
            names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK")
            os.environ |= dict.fromkeys(names, str(rank)) | {"GROUP_RANK": "0"}
            os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE"), str(ranks))
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "x"}
            command += ["--trainer.devices", str(ranks), "--trainer.strategy", "ddp"]
        before(rank)
        cli.main(command)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
        os.setpgid(process.pid, processes[0].pid)
    return processes


def wait(processes: list[Any], timeout_s: float = 60) -> list[int]:
    """The exit codes of all ranks; once one was killed, the others are too, as launchers do."""
    deadline = time.monotonic() + timeout_s
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode == -signal.SIGKILL for process in processes):
            break
        time.sleep(0.01)
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
    return [process.exitcode for process in processes]


def run(folder: Path, *args: str, **options: Any) -> list[int]:
    """`start`, to its end."""
    return wait(start(folder, *args, **options))


def said(folder: Path) -> str:
    """All that the runs in a folder have said, on one line."""
    return " ".join((folder / "log").read_text().split())


def kill_at(owner: object, name: str, call: int) -> None:
    """From now on this process dies as by `kill -9` in place of the `call`-th call of a function."""
    function, calls = getattr(owner, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def final_state(folder: Path) -> dict[str, Any]:
    """All that a run's last checkpoint holds, and its metrics less those that tell the time."""
    state = torch.load(folder / "run/last.ckpt", weights_only=True)
    with (folder / "run/metrics.csv").open() as file:
        state["metrics"] = [
            {name: value for name, value in row.items() if not name.startswith(("speed/", "memory/"))}
            for row in csv.DictReader(file)
        ]
    return state


def first_difference(found: Any, wanted: Any, name: str = "") -> str | None:
    """Where two states differ, by any bit; None if nowhere."""
    if torch.is_tensor(wanted):
        same = torch.is_tensor(found) and found.dtype == wanted.dtype and torch.equal(found, wanted)
        return None if same else name
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        pairs = [(found[key], wanted[key], f"{name}/{key}") for key in wanted]
    elif isinstance(wanted, list | tuple) and len(found) == len(wanted):
        pairs = [(found[i], wanted[i], f"{name}/{i}") for i in range(len(wanted))]
    else:
        return None if found == wanted else f"{name}: {found!r:.300}, not {wanted!r:.300}"
    return next((where for pair in pairs if (where := first_difference(*pair))), None)
