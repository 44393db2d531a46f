"""What jobs leave in the run folder: metrics, checkpoints, and a config that runs again."""

import csv
import functools
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.fake_job import CONFIGS, write
from vqvae2.cli import suite as cli


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def weight(checkpoint: Path) -> float:
    return torch.load(checkpoint, weights_only=True)["state_dict"]["weight"].item()


def test_a_fit_leaves_metrics_checkpoints_and_a_config_that_runs_again(folder):
    part = yaml.safe_load((CONFIGS / "parts/fit.yaml").read_text())
    callbacks = part["trainer"]["callbacks+"]
    callbacks[:] = [each for each in callbacks if not each["class_path"].endswith("Health")]  # for networks
    write(folder / "part.yaml", part)
    write(folder / "child.yaml", {"base": ["job.yaml", "part.yaml"], "checkpoint": {"monitor": "val/loss"}})
    overrides = ["--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"]
    assert cli.main(["fit", "-c", "child.yaml", *overrides]) is None

    found = {
        (int(row["step"]), name): float(row[name])
        for row in rows(folder / "run/metrics.csv")
        for name in ("train/loss", "val/loss", "speed/samples_per_s", "lr-SGD")
        if row[name]
    }
    # gradient descent on (1 - w)² with rate 0.1: 1 - w = 0.8^steps
    assert [found[step, "train/loss"] for step in range(6)] == pytest.approx([0.64**n for n in range(6)])
    assert [found[step, "val/loss"] for step in (1, 3, 5)] == pytest.approx([0.64**n for n in (2, 4, 6)])
    assert found[5, "lr-SGD"] == 0.1
    assert found[5, "speed/samples_per_s"] > 0
    assert weight(folder / "run/last.ckpt") == pytest.approx(1 - 0.8**6)
    assert weight(folder / "run/best.ckpt") == pytest.approx(1 - 0.8**6)

    assert cli.main(["fit", "-c", "run/config.yaml", "--trainer.max_steps", "2", "--resume", "false"]) is None
    assert weight(folder / "run/last.ckpt") == pytest.approx(1 - 0.8**2)
    assert {row["step"] for row in rows(folder / "run/metrics.csv")} == {"0", "1"}


def test_best_keeps_the_best_and_last_the_last(folder):
    """A learning rate of 1.5 throws the error from 1 to 2, 4, 8, …: the first validation is the best."""
    args = [
        "--model.learning_rate",
        "1.5",
        "--checkpoint.monitor",
        "val/loss",
        "--trainer.val_check_interval",
        "1",
    ]
    cli.main(["fit", "-c", "job.yaml", *args])
    assert weight(folder / "run/best.ckpt") == 1 - (-2) ** 1
    assert weight(folder / "run/last.ckpt") == 1 - (-2) ** 6
    cli.main(["fit", "-c", "job.yaml", *args, "--checkpoint.mode", "max", "--resume", "false"])
    assert weight(folder / "run/best.ckpt") == 1 - (-2) ** 6


def test_a_resumed_fit_goes_on_with_state_metrics_and_best(folder):
    args = ["fit", "-c", "job.yaml", "--checkpoint.monitor", "val/loss", "--trainer.val_check_interval", "1"]
    args += [
        "--trainer.log_every_n_steps",
        "1",
        "--ckpt_path",
        "last",
        "--trainer.check_val_every_n_epoch",
        "null",
    ]
    accepted = ["--allow_inexact_resume", "true"]
    cli.main([*args, "--trainer.max_steps", "3"])  # nothing to resume: a first start
    cli.main([*args, "--trainer.max_steps", "5", "--model.learning_rate", "0.2", *accepted])
    assert weight(folder / "run/last.ckpt") == pytest.approx(1 - 0.8**5)  # the optimiser's rate is its state
    losses = [float(row["train/loss"]) for row in rows(folder / "run/metrics.csv") if row["train/loss"]]
    assert losses == pytest.approx([0.64**n for n in range(5)])
    callbacks = torch.load(folder / "run/best.ckpt", weights_only=True)["callbacks"]
    assert callbacks["RunCheckpoint"]["best"] == pytest.approx(0.64**5)


def test_other_verbs_leave_the_fit_alone_and_read_its_checkpoint(folder, capsys):
    cli.main(["fit", "-c", "job.yaml"])
    before = (folder / "run/metrics.csv").read_text()
    capsys.readouterr()
    cli.main(["test", "-c", "job.yaml", "--ckpt_path", "last"])
    assert f"{0.64**6:.4f}"[:6] in capsys.readouterr().out
    assert (folder / "run/metrics.csv").read_text() == before


def test_predictions_are_not_kept(folder, monkeypatch):
    returned = []
    predict = cli.Trainer.predict

    @functools.wraps(predict)
    def spy(self, *args, **kwargs):
        returned.append(predict(self, *args, **kwargs))

    monkeypatch.setattr(cli.Trainer, "predict", spy)
    cli.main(["predict", "-c", "job.yaml"])
    assert returned == [None]
