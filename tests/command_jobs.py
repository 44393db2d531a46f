"""Small jobs of every kind, run by the command line from a config of their own."""

from pathlib import Path

import yaml

from tests.fit_runs import QUIET, STEPS
from vqvae2.cli.suite import main as cli

STACK = {"output_layers": 0, "conditioning_hidden": 8, "conditioning_blocks": 2}
CONSTANT = {"class_path": "Constant", "init_args": {"learning_rate": 0.01}}
TRAINER = {"accelerator": "cpu", "devices": 1, "logger": False, **QUIET}


def named(class_path: str, **options) -> dict:
    """A class and its options, as configs have them."""
    return {"class_path": class_path, "init_args": options}


def lightning(verb: str, folder: Path, name: str, model: dict, data: dict, *callbacks: dict) -> None:
    """Runs a job whose folder is `folder/name`."""
    steps = STEPS if verb == "fit" else {}
    trainer = {**TRAINER, **steps, "default_root_dir": str(folder / name), "callbacks": list(callbacks)}
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump({"trainer": trainer, "model": model, "data": data}))
    cli([verb, "-c", str(config)])
