"""OpenMP's threads sleep while they wait, so that a run does not collapse beside another busy process."""

import os
import subprocess
import sys

import pytest


def policy(before: str, **environment: str) -> str:
    """What libgomp says of itself in a process that imports the suite."""
    script = f"{before}\nimport vqvae2, torch\ntorch.ones(9).sum()"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", script]
    shown = {**clean, "OMP_DISPLAY_ENV": "verbose", **environment}
    done = subprocess.run(command, env=shown, capture_output=True, text=True, check=True)
    return done.stderr


@pytest.mark.parametrize(
    ("before", "environment", "wanted"),
    [
        ("", {}, "OMP_WAIT_POLICY = 'PASSIVE'"),
        ("", {"OMP_WAIT_POLICY": "active"}, "OMP_WAIT_POLICY = 'ACTIVE'"),
        ("", {"GOMP_SPINCOUNT": "7"}, "GOMP_SPINCOUNT = '7'"),
        ("from vqvae2.cli import main", {}, "OMP_WAIT_POLICY = 'PASSIVE'"),
    ],
)
def test_threads_sleep_while_they_wait_unless_somebody_wants_otherwise(before, environment, wanted):
    assert wanted in policy(before, **environment)


def test_where_torch_came_first_nothing_is_said_or_set():
    script = "import torch, os, vqvae2; print(os.environ.get('OMP_WAIT_POLICY'))"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout == "None\n"
