"""What a figure was computed with: the code's commit, the device, the libraries' versions."""

import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = ("torch", "lightning", "torch-fidelity", "numpy", "pillow")


def surroundings(device: torch.device) -> dict[str, Any]:
    """Plain types, for a report."""
    return {
        "commit": _commit(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }


def _commit() -> str | None:
    """Of the checkout that this file belongs to, with "+" if files that git knows were changed; else None."""
    if shutil.which("git") is None or not _git("ls-files", Path(__file__).name):
        return None  # perhaps within another project's checkout
    return _git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+") or None


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(named, platform.machine())}, {torch.get_num_threads()} threads"
