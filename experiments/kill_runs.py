"""Kills a training run by SIGKILL at random moments and starts it again; prints whether every bit is equal.

python experiments/kill_runs.py --kills 20 --ranks 1 --what vqvae

Trains the demo's autoencoder or top prior, shrunk: once without interruption, once killed. The command is the
same each time. With 2 ranks torchrun starts them, and the kill hits one of them or torchrun with all of them,
in turn. A kill comes at a random moment between the first step and the end of the run that is left; starts
that come to their end before they are killed are followed by the next with nothing left to do, so that fewer
kills than asked for is an error.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from vqvae2.composition import compose
from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import LatentSpec, Level, Manifest, write_manifest

CONFIGS = Path(__file__).parents[1] / "configs"
WIDTHS = {
    "vqvae": {"hidden": 16, "residual": 8, "num_codes": 32, "code_dim": 8},
    "top": {"hidden": 16, "residual": 16, "layers": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", choices=sorted(WIDTHS), default="vqvae")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        sys.exit(measure(Path(root), options))


def measure(root: Path, options: argparse.Namespace) -> int:
    """Prints what came of it; 0 if all was as it should be."""
    config = write_job(root, options)
    whole, killed = root / "whole", root / "killed"
    started = time.monotonic()
    if Job(config, whole, options.ranks).wait() != 0:
        sys.exit(f"the uninterrupted run failed: {tail(whole)}")
    whole_s = time.monotonic() - started
    kills = kill_often(config, killed, options)
    print(f"{options.what}, {options.ranks} ranks, {options.steps} steps; uninterrupted {whole_s:.0f} s")
    print(f"killed {len(kills)} times, at steps {' '.join(map(str, kills))}")
    found = differences(state(killed), state(whole))
    print("every bit is the same" if not found else f"differs in {len(found)} places: {found[:5]}")
    return int(bool(found) or len(kills) < options.kills)


def write_job(root: Path, options: argparse.Namespace) -> Path:
    """The demo's config with narrow networks, checkpoints and validations in short intervals."""
    if options.what == "top":
        write_latents(root / "latents")
    config = compose(CONFIGS / f"demo_{options.what}.yaml")
    config["model"]["init_args"] |= WIDTHS[options.what]
    config["data"]["init_args"] |= {"batch_size": 8}
    if options.what == "top":
        config["data"]["init_args"]["latents"] = str(root / "latents")
        for key in {"callbacks", "callbacks+"} & set(config["trainer"]):
            listed = config["trainer"][key]
            config["trainer"][key] = [each for each in listed if "SampleGrid" not in each["class_path"]]
    config["trainer"] |= {
        "accelerator": "cpu",
        "devices": options.ranks,
        "strategy": "ddp" if options.ranks > 1 else "auto",
        "max_steps": options.steps,
        "val_check_interval": options.steps // 8 + 3,
        "log_every_n_steps": 5,
        "limit_val_batches": 2,
        "enable_progress_bar": False,
    }
    config["checkpoint"] |= {"every_steps": max(options.steps // 40, 1), "keep": 2}
    path = root / "job.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_latents(folder: Path) -> None:
    """Random codes: 200 of grids 4x4 and 8x8 to train on, 40 held out."""
    spec = LatentSpec((Level("top", 4, 4, 32), Level("bottom", 8, 8, 32)), 10, "0" * 64)
    draw, splits = np.random.default_rng(0), {}
    for split, count in {"train": 200, "val": 40}.items():
        shard = write_shard(
            folder,
            f"{split}/000000.tar",
            spec,
            codes=[draw.integers(0, 32, (count, level.height, level.width)) for level in spec.levels],
            labels=draw.integers(0, 10, count),
            keys=[str(i) for i in range(count)],
            samples_per_record=64,
        )
        splits[split] = (shard,)
    write_manifest(folder, Manifest(spec, (), {}, splits))


class Job:
    """One start of the command, alone in its process group."""

    def __init__(self, config: Path, folder: Path, ranks: int) -> None:
        folder.mkdir(exist_ok=True)
        command = ["-m", "vqvae2.cli", "fit", "-c", str(config), "--trainer.default_root_dir", "run"]
        if ranks > 1:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *command]
        self.folder = folder
        root = str(CONFIGS.parent)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root, "GLOO_SOCKET_IFNAME": "lo"}
        with (folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> int:
        return self.process.wait()

    def kill(self, which: int | None) -> None:
        """Kills one rank, and then what is left, as a launcher does; None: all at once, launcher included."""
        ranks = children(self.process.pid)
        if which is not None and ranks:
            os.kill(ranks[which % len(ranks)], signal.SIGKILL)
            time.sleep(0.3)
        for pid in [*children(self.process.pid), *ranks, self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def kill_often(config: Path, folder: Path, options: argparse.Namespace) -> list[int]:
    """Runs to the end with kills on the way; the steps that `last.ckpt` was at after each of them."""
    draw = random.Random(options.seed)
    kills: list[int] = []
    while True:
        job = Job(config, folder, options.ranks)
        if len(kills) == options.kills:
            if job.wait() != 0:
                sys.exit(f"a start failed: {tail(folder)}")
            return kills
        wanted = options.steps * (len(kills) + draw.random()) / options.kills  # a step, spread over the run
        while job.process.poll() is None and logged_step(folder) < wanted:
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        if job.process.poll() not in (None, 0):
            sys.exit(f"a start failed: {tail(folder)}")
        if job.process.poll() == 0:
            return kills
        job.kill(draw.randrange(options.ranks) if options.ranks > 1 and len(kills) % 2 else None)
        kills.append(logged_step(folder))


def logged_step(folder: Path) -> int:
    """The last step in the run's metrics; -1 before the first."""
    path = folder / "run/metrics.csv"
    if not path.exists():
        return -1
    step = path.read_text().rstrip("\n").rpartition("\n")[2].partition(",")[0]
    return int(step) if step.isdecimal() else -1


def state(folder: Path) -> dict[str, Any]:
    """All that a run has left: both checkpoints, and its metrics less those that tell the time."""
    found = {
        name: torch.load(folder / f"run/{name}.ckpt", weights_only=True)
        for name in ("last", "best")
        if (folder / f"run/{name}.ckpt").exists()
    }
    with (folder / "run/metrics.csv").open() as file:
        rows = [
            {name: value for name, value in row.items() if not name.startswith(("speed/", "memory/"))}
            for row in csv.DictReader(file)
        ]
    names = sorted(path.name for path in (folder / "run").iterdir())
    return {
        **found,
        "metrics": [row for row in rows if len([*filter(None, row.values())]) > 1],
        "files": names,
    }


def differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """Where two states differ by any bit."""
    if torch.is_tensor(wanted):
        return [] if torch.is_tensor(found) and torch.equal(found, wanted) else [name]
    if isinstance(wanted, dict) and isinstance(found, dict) and found.keys() == wanted.keys():
        return [each for key in wanted for each in differences(found[key], wanted[key], f"{name}/{key}")]
    if isinstance(wanted, list | tuple) and isinstance(found, list | tuple) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [each for i, pair in pairs for each in differences(*pair, f"{name}/{i}")]
    same = json.dumps(found, default=str) == json.dumps(wanted, default=str)
    return [] if same else [f"{name}: {found!r:.120} against {wanted!r:.120}"]


def tail(folder: Path) -> str:
    return (folder / "log").read_text()[-2000:]


if __name__ == "__main__":
    main()
