"""A small fake job as a config, and commands that show or run it."""

from pathlib import Path

import pytest
import yaml

from vqvae2.cli import suite as cli

CONFIGS = Path(__file__).parents[2] / "configs"

JOB = {
    "trainer": {
        "max_steps": 6,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "model": {"class_path": "tests.fake_jobs.FakeModule", "init_args": {"hidden": 8}},
    "data": {"class_path": "tests.fake_jobs.FakeData", "init_args": {"size": 16}},
}


def write(path: Path, config: dict) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return str(path)


def composed(capsys, *args: str) -> dict:
    """What --print_config says that `fit` with these arguments would run."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["fit", *args, "--print_config"])
    assert exit_info.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def failure(capsys, *args: str) -> tuple[int, str]:
    """Status and message of a command that fails, which must be one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        cli.main(list(args))
    err = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set")]
    assert len(err) == 1
    return exit_info.value.code, err[0].removeprefix("error: ")
