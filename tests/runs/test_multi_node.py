"""Two "nodes" on one machine, by the README's recipes for torchrun and SLURM, against a single process."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tests.sample_job import files
from tests.training.training_run import NETWORK, write_images
from vqvae2.cli import suite as cli
from vqvae2.data.images import ImageDataModule

ROOT = Path(__file__).parents[2]
STEPS, BATCH = 6, 4
JOB = {
    "base": [str(ROOT / "configs/parts/fit.yaml")],
    "trainer": {
        "max_steps": STEPS,
        "val_check_interval": 2,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": "one",
    },
    "checkpoint": {"monitor": "val/loss"},
    "model": {
        "class_path": "vqvae2.training.autoencoder.AutoencoderModule",
        "init_args": {
            "schedule": {
                "class_path": "vqvae2.training.schedules.Constant",
                "init_args": {"learning_rate": 1e-3},
            },
            "beta": 0.25,
            "polyak": 0.9,
            **NETWORK,
        },
    },
    "data": {
        "class_path": "tests.runs.test_multi_node.WatchedImages",
        "init_args": {"train": "images/train", "val": "images/val", "image_size": 8, "batch_size": BATCH},
    },
}
ENCODE = {
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
    "model": {
        "class_path": "vqvae2.jobs.encode.EncodeModule",
        "init_args": {"checkpoint": "one/last.ckpt"},
    },
    "data": {
        "class_path": "vqvae2.data.images.ImageDataModule",
        "init_args": JOB["data"]["init_args"] | {"chunk_size": 3},
    },
}


class WatchedImages(ImageDataModule):
    """Notes beside the run folder what each process trains on, and what it writes there.

    With the variable STOP_AT, a process gets SLURM's signal during that step, unless it was started again.
    """

    def setup(self, stage: str) -> None:
        super().setup(stage)
        run = str(Path(self.trainer.default_root_dir).resolve())

        def watch(event: str, args: tuple) -> None:
            if event == "open" and str(args[0]).startswith(run) and args[2] & (os.O_WRONLY | os.O_RDWR):
                self.note({"wrote": str(args[0])})
            elif event in ("os.mkdir", "os.rename"):
                path = os.path.abspath(args[0])
                if path.startswith(f"{run}/"):
                    self.note({"wrote": path})

        sys.addaudithook(watch)

    def note(self, entry: dict) -> None:
        with open(f"{self.trainer.default_root_dir}.{self.trainer.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\n")

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            step = self.trainer.global_step
            self.note({"step": step, "keys": batch.keys})
            if step == int(os.environ.get("STOP_AT", -1)) and "SLURM_RESTART_COUNT" not in os.environ:
                os.kill(os.getpid(), signal.SIGUSR1)
        return batch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with images, configs, and the runs of a single process: `one`, `one/latents`."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "images").mkdir()
    write_images(folder / "images")
    (folder / "fit.yaml").write_text(yaml.safe_dump(JOB))
    (folder / "encode.yaml").write_text(yaml.safe_dump(ENCODE))
    tasks(folder, [{}], ["fit", "-c", "fit.yaml"])
    tasks(folder, [{}], encode("one-latents"))
    return folder


def encode(latents: str) -> list[str]:
    writer = "vqvae2.jobs.latent_writer.LatentWriter"
    where = ["--trainer.callbacks", writer, "--trainer.callbacks.folder", latents]
    return ["predict", "-c", "encode.yaml", "--trainer.default_root_dir", latents, *where]


def tasks(folder: Path, environments: list[dict], args: list[str], status: int = 0) -> None:
    """Runs the command in a forked process for each environment, and waits for all."""
    forks = multiprocessing.get_context("fork")
    started = [forks.Process(target=command, args=(folder, each, args)) for each in environments]
    finish(started, [status] * len(started))


def command(folder: Path, environment: dict, args: list[str]) -> None:
    os.chdir(folder)
    os.environ |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **environment}
    torch.set_num_threads(1)
    cli.main(args)


def finish(started: list, statuses: list[int]) -> None:
    for process in started:
        process.start()
    for process in started:
        process.join(100)
    found = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert found == statuses


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def notes(run: Path) -> list[list[dict]]:
    """Of each process."""
    found = sorted(run.parent.glob(f"{run.name}.*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in found]


def order(run: Path) -> dict[int, list[str]]:
    """The images of each step. A run that stops before a step has loaded them, and loads them again."""
    ranks = [{entry["step"]: entry["keys"] for entry in rank if "step" in entry} for rank in notes(run)]
    return {step: sorted(key for rank in ranks for key in rank[step]) for step in ranks[0]}


def assert_same_run(run: Path, one: Path) -> None:
    """Weights, moments, order, metrics and files, written by the first node, are those of one process."""
    found, wanted = (torch.load(each / "last.ckpt", weights_only=True) for each in (run, one))
    assert (found["global_step"], found["epoch"]) == (wanted["global_step"], wanted["epoch"]) == (STEPS, 1)
    torch.testing.assert_close(found["state_dict"], wanted["state_dict"], rtol=0, atol=1e-5)
    torch.testing.assert_close(
        found["optimizer_states"][0]["state"], wanted["optimizer_states"][0]["state"], rtol=0, atol=1e-5
    )
    assert [len(keys) for keys in order(run).values()] == [BATCH] * STEPS
    assert order(run) == order(one)
    rows = [(each / "metrics.csv").read_text().count("\n") for each in (run, one)]
    assert rows[0] == rows[1]
    assert files(run).keys() == files(one).keys()
    wrote = [{entry["wrote"] for entry in rank if "wrote" in entry} for rank in notes(run)]
    assert len(wrote) == 2
    assert {"last.ckpt", "best.ckpt", "config.yaml"} <= {
        Path(path).name.removesuffix(".part") for path in wrote[0]
    }
    assert not wrote[1]


DDP = ["-c", str(ROOT / "configs/ddp.yaml")]
NODES = [*DDP, "--trainer.num_nodes", "2", "--trainer.devices", "1"]


def test_a_fit_by_torchrun_on_two_nodes_is_that_of_one_process(folder):
    """The recipe's own commands: nothing is forked, patched or set but the interface of gloo."""
    recipe = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    recipe += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{free_port()}", "-m", "vqvae2.cli"]
    recipe += ["fit", "-c", "fit.yaml", "--trainer.default_root_dir", "torchrun", *NODES]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    nodes = [subprocess.Popen(recipe, cwd=folder, env=environment, **pipes) for _ in range(2)]
    try:
        outputs = [node.communicate(timeout=150)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert_same_run(folder / "torchrun", folder / "one")


def test_latents_encoded_by_torchrun_on_two_nodes_are_those_of_one_process(folder):
    """By torchrun's agent and rendezvous, whose worker is forked, as a start of Python would take long."""
    where = {"rdzv_backend": "c10d", "rdzv_endpoint": f"localhost:{free_port()}", "run_id": "encode"}

    def node() -> None:
        config = LaunchConfig(
            min_nodes=2, max_nodes=2, nproc_per_node=1, start_method="fork", max_restarts=0, **where
        )
        elastic_launch(config, command)(folder, {}, [*encode("latents"), *NODES])

    finish([multiprocessing.get_context("fork").Process(target=node) for _ in range(2)], [0, 0])
    found, wanted = (files(folder / name) for name in ("latents", "one-latents"))
    assert found.pop("config.yaml") != wanted.pop("config.yaml")  # which says by how many it was made
    assert len([name for name in wanted if name.endswith(".tar")]) == 7 + 2
    assert found == wanted


SRUN = """#!/bin/bash
# What srun does: the command in a task for each of the job's, here on nodes of one task.
while [[ $1 == --* ]]; do shift; done
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_NODEID=$task SLURM_LOCALID=0 "$@" &
done
wait
"""
RECORD = """#!/bin/bash
env | grep ^SLURM_ >"$SLURM_PROCID.env"
printf '%s\\n' "$@" >"$SLURM_PROCID.args"
"""
SCONTROL = '#!/bin/bash\necho "$@" >>scontrol.calls\n'


def sbatch(folder: Path, args: list[str], **changes: str) -> tuple[list[dict], list[str]]:
    """The tasks' SLURM variables, and their arguments, of the job script with other #SBATCH options."""
    script = ROOT / "experiments/slurm/job.sbatch"
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", script.read_text(), re.MULTILINE)) | changes
    tasks_a_node = options["ntasks-per-node"]
    submitted = {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NAME": options["job-name"],
        "SLURM_NODELIST": "localhost",
        "SLURM_NNODES": options["nodes"],
        "SLURM_NTASKS_PER_NODE": tasks_a_node,
        "SLURM_NTASKS": str(int(options["nodes"]) * int(tasks_a_node)),
        "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
    }
    for name, text in {"srun": SRUN, "lightning": RECORD, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = os.environ | submitted | {"PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["bash", script, *args], cwd=folder, env=environment, check=True, timeout=30)
    found = []
    for task in range(int(submitted["SLURM_NTASKS"])):
        lines = (folder / f"{task}.env").read_text().splitlines()
        found.append(dict(line.split("=", 1) for line in lines))
    assert (folder / "0.args").read_text() == (folder / "1.args").read_text()
    return found, (folder / "0.args").read_text().splitlines()


def test_a_fit_by_slurm_on_two_nodes_that_is_stopped_and_run_again_is_that_of_one_process(folder):
    args = ["fit", "-c", "fit.yaml", "--trainer.default_root_dir", "slurm", *DDP]
    environments, args = sbatch(folder, args, **{"nodes": "2", "ntasks-per-node": "1"})
    first = {"PATH": f"{folder}:{os.environ['PATH']}", "STOP_AT": "3", "MASTER_PORT": str(free_port())}
    environments = [each | first for each in environments]
    tasks(folder, environments, args, status=75)
    assert (folder / "scontrol.calls").read_text() == "requeue 4242\n"
    assert torch.load(folder / "slurm/last.ckpt", weights_only=True)["global_step"] < STEPS

    again = {"SLURM_RESTART_COUNT": "1", "MASTER_PORT": str(free_port())}
    tasks(folder, [each | again for each in environments], args)
    assert_same_run(folder / "slurm", folder / "one")


def test_the_job_script_asks_slurm_for_what_a_stopped_fit_needs():
    script = (ROOT / "experiments/slurm/job.sbatch").read_text()
    options = set(re.findall(r"^#SBATCH (--\S+)$", script, re.MULTILINE))
    assert {"--requeue", "--signal=SIGUSR1@60", "--open-mode=append"} <= options
    assert not {option for option in options if option.startswith("--gpus-per-task")}
