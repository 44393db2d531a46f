"""Kills a job by SIGKILL at random moments, starts it again, and compares every bit with a whole run's.

    python experiments/kill.py vqvae --ranks 2          # or top
    python experiments/kill.py encode --ranks 1 2 3     # or sample

The job is a smaller job of the demo, with the same command each time; the starts take the numbers of ranks in
turn. `top`, `encode` and `sample` read the files of `make demo`. The kills are spread over the job. With
several ranks, every second kill hits a single rank first. Fewer kills than asked for is an error.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
STEPS = 400
SECONDS = 600  # a start that takes longer hangs
FIT = (
    f"fit --trainer.max_steps {STEPS} --trainer.val_check_interval {STEPS // 8 + 3} "
    "--trainer.limit_val_batches 2 --trainer.log_every_n_steps 5 --data.batch_size 8 "
    f"--checkpoint.every_steps {STEPS // 40} --checkpoint.keep 2"
)
JOBS = {
    "vqvae": f"{FIT} --model.hidden 16 --model.residual 8 --model.num_codes 32 --model.code_dim 8",
    "top": f"{FIT} --model.hidden 16 --model.residual 16 --model.layers 2",
    "encode": "predict --data.chunk_size 250",
    "sample": "predict --data.chunk_size 25 --data.batch_size 25",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=sorted(JOBS))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        if start(options.job, whole, options.ranks[0]).wait() != 0:
            sys.exit(f"error: the uninterrupted run failed: {tail(whole)}")
        kills = kill_often(killed, progress(whole), options)
        found = differences(state(killed), state(whole))
    print(
        f"{options.job} on {options.ranks} ranks, killed {len(kills)} times, at {' '.join(map(str, kills))}"
    )
    print(f"differs in {len(found)} places: {found[:5]}" if found else "every bit is the same")
    sys.exit(int(bool(found) or len(kills) < options.kills))


def start(job: str, folder: Path, ranks: int) -> subprocess.Popen:
    """The command, with all its ranks in a process group of its own."""
    verb, *options = JOBS[job].split()
    command = [sys.executable, "-m", "vqvae2.cli", verb, "-c", f"configs/demo_{job}.yaml", *options]
    command += ["--trainer.default_root_dir", str(folder), "--trainer.enable_progress_bar", "false"]
    command += ["--trainer.accelerator", "cpu", "--trainer.devices", str(ranks)]
    command += ["--trainer.strategy", "ddp" if ranks > 1 else "auto"]
    if verb == "predict":
        command += ["--trainer.callbacks.init_args.folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )


def kill_often(folder: Path, total: int, options: argparse.Namespace) -> list[int]:
    """Runs to the end with kills on the way; how far the job was at each of them."""
    draw, kills = random.Random(options.seed), []
    for ranks in cycle(options.ranks):
        process, started = start(options.job, folder, ranks), time.monotonic()
        last = len(kills) == options.kills
        wanted = total + 1 if last else total * (len(kills) + draw.random()) / options.kills
        while process.poll() is None and progress(folder) < wanted:
            if time.monotonic() - started > SECONDS:
                os.killpg(process.pid, signal.SIGKILL)
                sys.exit(f"error: the job hangs: {tail(folder)}")
            time.sleep(0.005)
        time.sleep(draw.random() * 0.05)
        if process.poll() is not None:
            if process.returncode:
                sys.exit(f"error: a start failed: {tail(folder)}")
            return kills
        kill(process.pid, one_first=bool(len(kills) % 2))
        process.wait()
        kills.append(progress(folder))
    raise AssertionError("cycle has no end")


def kill(group: int, *, one_first: bool) -> None:
    """Kills all processes of a job at once, or one of its children and then the others."""
    children = Path(f"/proc/{group}/task/{group}/children").read_text().split()
    if one_first and children:
        os.kill(int(children[-1]), signal.SIGKILL)
        time.sleep(0.3)
    os.killpg(group, signal.SIGKILL)


def progress(folder: Path) -> int:
    """The last step in a fit's metrics, -1 before the first; of other jobs the files that are written."""
    path = folder / "metrics.csv"
    if not path.exists():
        return len(list(folder.rglob("*.tar"))) or -1
    step = path.read_text().rstrip("\n").rpartition("\n")[2].partition(",")[0]
    return int(step) if step.isdecimal() else -1


def state(folder: Path) -> dict[str, Any]:
    """All that a job has left: content of checkpoints, figures that do not tell the time, bytes else."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".ckpt":
            found[name] = torch.load(path, weights_only=True)
        elif name == "metrics.csv":
            rows = csv.DictReader(path.read_text().splitlines())
            timeless = [
                {k: v for k, v in row.items() if v and not k.startswith(("speed/", "memory/"))}
                for row in rows
            ]
            found[name] = [row for row in timeless if len(row) > 1]
        elif name != "config.yaml":  # which names the devices
            found[name] = path.read_bytes()
    return found


def differences(found: Any, wanted: Any, name: str = "") -> list[str]:
    """Where two states differ by any bit."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = {**wanted, **found}
        return [
            each for key in keys for each in differences(found.get(key), wanted.get(key), f"{name}/{key}")
        ]
    if isinstance(wanted, list | tuple) and isinstance(found, list | tuple) and len(found) == len(wanted):
        pairs = zip(found, wanted, strict=True)
        return [each for i, pair in enumerate(pairs) for each in differences(*pair, f"{name}/{i}")]
    if torch.is_tensor(wanted) and torch.is_tensor(found):
        return [] if torch.equal(found, wanted) else [name]
    return (
        []
        if type(found) is type(wanted) and found == wanted
        else [f"{name}: {found!r:.80} against {wanted!r:.80}"]
    )


def tail(folder: Path) -> str:
    return folder.with_suffix(".log").read_text()[-2000:]


if __name__ == "__main__":
    main()
