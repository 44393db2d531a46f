"""Kills the encode or the sample job again and again, and compares what it ends with to an uninterrupted run.

    python experiments/kill_encode.py                    # 20 kills over the demo's encode job
    python experiments/kill_encode.py --what sample

The job runs on 1, 2 and 3 ranks in turn. Each run gets SIGKILL, with all its ranks, once it has written a
random number of files, at a random moment after that. In the end every file has to be the same, byte for
byte; only `config.yaml`, which names the devices, may differ.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RANKS = (1, 2, 3)
SECONDS = 300  # a run that has neither written nor ended by then hangs
OPTIONS = {
    "encode": ["--data.chunk_size", "250"],
    "sample": ["--data.chunk_size", "25", "--data.batch_size", "25"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config", default="demo", help="X of configs/X_encode.yaml or configs/X_sample.yaml"
    )
    parser.add_argument("--what", choices=sorted(OPTIONS), default="encode")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    root = Path("runs", options.config, f"kill_{options.what}")
    shutil.rmtree(root, ignore_errors=True)
    whole, killed = root / "whole", root / "killed"
    draw = random.Random(options.seed)
    run(options, whole, num_ranks=1)
    num_files = len(shards(whole))
    print(f"Uninterrupted: {num_files} files.")
    kills = 0
    for attempt in range(1000):
        num_ranks = RANKS[attempt % len(RANKS)]
        most = max(1, round(num_files / options.kills))
        files = draw.randint(0, most) if kills < options.kills else None
        ended = run(options, killed, num_ranks=num_ranks, kill_after=files, delay_s=draw.random() / 4)
        how = "ended" if ended else "killed"
        print(f"{num_ranks} ranks: {how}, {len(shards(killed))} of {num_files} files.", flush=True)
        kills += not ended
        if ended:
            break
    differences = compare(whole, killed)
    print(f"{kills} kills. {f'Different: {differences}' if differences else 'Every byte is the same.'}")
    if differences or kills < options.kills:
        sys.exit(1)


def run(
    options: argparse.Namespace,
    folder: Path,
    *,
    num_ranks: int,
    kill_after: int | None = None,
    delay_s: float = 0.0,
) -> bool:
    """Runs the job; whether it ended by itself.

    Args:
        folder: that it fills.
        num_ranks: processes.
        kill_after: files that it writes before it is killed; None lets it end.
        delay_s: from then to the kill.
    """
    devices = ["--trainer.accelerator", "cpu", "--trainer.devices", str(num_ranks)]
    devices += ["--trainer.strategy", "ddp"] if num_ranks > 1 else []
    command = [
        sys.executable,
        "-m",
        "vqvae2.cli",
        "predict",
        "-c",
        f"configs/{options.config}_{options.what}.yaml",
    ]
    command += [
        "--trainer.default_root_dir",
        str(folder),
        "--trainer.callbacks.init_args.folder",
        str(folder),
    ]
    command += [*devices, "--trainer.enable_progress_bar", "false", *OPTIONS[options.what]]
    before = len(shards(folder))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, start_new_session=True, env=environment, **quiet)
    started = time.monotonic()
    while process.poll() is None:
        if kill_after is not None and len(shards(folder)) - before >= kill_after:
            time.sleep(delay_s)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return False
        if time.monotonic() - started > SECONDS:
            os.killpg(process.pid, signal.SIGKILL)
            sys.exit(f"error: the job hangs: {' '.join(command)}")
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"error: the job failed: {' '.join(command)}")
    return True


def shards(folder: Path) -> Sequence[Path]:
    return sorted(folder.rglob("*.tar"))


def compare(whole: Path, killed: Path) -> list[str]:
    """Names of the files that are missing, too many or different."""
    contents = [
        {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (whole, killed)
    ]
    names = sorted(set(contents[0]) | set(contents[1]))
    return [
        name for name in names if name != "config.yaml" and contents[0].get(name) != contents[1].get(name)
    ]


if __name__ == "__main__":
    main()
