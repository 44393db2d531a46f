"""A folder to run commands in."""

import pytest

from tests.cli.fake_job import JOB, write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with `job.yaml`, whose run folder is `run`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    write(tmp_path / "job.yaml", JOB | {"trainer": JOB["trainer"] | {"default_root_dir": "run"}})
    return tmp_path
