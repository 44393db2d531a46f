"""What an evaluation says it was computed with."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from vqvae2.evaluation import provenance as module
from vqvae2.evaluation.provenance import surroundings

CPU = torch.device("cpu")


def git(folder, *arguments):
    name = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    found = subprocess.run(["git", *name, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of which the package is part, as far as the module can see."""
    git(tmp_path, "init", "-q")
    file = tmp_path / "module.py"
    file.write_text("x = 1")
    monkeypatch.setattr(module, "__file__", str(file))
    return tmp_path


def test_the_commit_and_whether_something_was_changed(checkout):
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    commit = git(checkout, "rev-parse", "HEAD")
    git(checkout, "tag", "v1")
    assert surroundings(CPU)["commit"] == commit
    (checkout / "another.txt").write_text("not part of it")
    assert surroundings(CPU)["commit"] == commit
    (checkout / "module.py").write_text("x = 2")
    assert surroundings(CPU)["commit"] == f"{commit}+"


def test_the_checkout_of_another_project_is_not_taken_for_ours(checkout, monkeypatch):
    (checkout / "other.txt").write_text("theirs")
    git(checkout, "add", "other.txt")
    git(checkout, "commit", "-qm", "theirs")
    assert surroundings(CPU)["commit"] is None
    monkeypatch.setenv("PATH", "")  # no git
    assert surroundings(CPU)["commit"] is None


def test_versions_and_device():
    found = surroundings(CPU)
    assert found["versions"]["torch"] == version("torch")
    assert found["versions"]["python"] == platform.python_version()
    info = Path("/proc/cpuinfo")
    if info.is_file() and "model name" in info.read_text():
        assert found["device"].partition(",")[0] in info.read_text()
