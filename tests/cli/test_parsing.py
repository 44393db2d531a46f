"""What the command line makes of options and configs together: order, homes, keys given twice."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.fake_job import JOB, composed, failure, write
from vqvae2.cli import suite as cli


@pytest.fixture
def job(folder, monkeypatch):
    """`folder`, with a home in it."""
    monkeypatch.setenv("HOME", str(folder / "home"))
    return folder


@pytest.mark.parametrize(
    "args",
    [
        ["--trainer.max_steps", "3", "--model.hidden=5", "-c", "job.yaml", "-c", "over.yaml"],
        ["-c", "job.yaml", "--trainer.max_steps", "3", "-c", "over.yaml", "--model.hidden", "5"],
        ["-c", "job.yaml", "-c", "over.yaml", "--trainer.max_steps", "3", "--model.hidden", "5"],
    ],
)
def test_options_go_over_every_config_wherever_they_stand(job, capsys, args):
    write(
        job / "over.yaml",
        {"trainer": {"max_steps": 9, "max_epochs": 8}, "model": {"init_args": {"hidden": 7}}},
    )
    config = composed(capsys, *args)
    assert [config["trainer"][name] for name in ("max_steps", "max_epochs")] == [3, 8]
    assert config["model"]["init_args"]["hidden"] == 5


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["-c", "plus.yaml", "-c", "plain.yaml"], ["DeviceStatsMonitor"]),
        (["-c", "plain.yaml", "-c", "plus.yaml"], ["DeviceStatsMonitor", "LearningRateMonitor"]),
        (["-c", "child.yaml"], ["DeviceStatsMonitor"]),  # its own list, over a base that appends
        (
            ["--trainer.callbacks+", "ModelSummary", "-c", "plain.yaml"],
            ["DeviceStatsMonitor", "ModelSummary"],
        ),
    ],
)
def test_a_list_replaces_and_a_plus_appends(job, capsys, args, names):
    def callbacks(key, name):
        return {"trainer": {key: [{"class_path": f"lightning.pytorch.callbacks.{name}"}]}}

    write(job / "plus.yaml", callbacks("callbacks+", "LearningRateMonitor"))
    write(job / "plain.yaml", callbacks("callbacks", "DeviceStatsMonitor"))
    write(job / "child.yaml", {"base": ["plus.yaml"]} | callbacks("callbacks", "DeviceStatsMonitor"))
    found = composed(capsys, "-c", "job.yaml", *args)["trainer"]["callbacks"]
    assert [each["class_path"].rpartition(".")[2] for each in found] == names


def test_every_path_of_a_job_may_begin_with_the_home(job, monkeypatch):
    """Seen where the parts of a job get them: as options, in lists and mappings, in callbacks."""
    built = []
    monkeypatch.setattr(cli.SuiteCLI, "fit", lambda command, **_: built.append(command))
    callback = {"class_path": "tests.fake_jobs.PathCallback", "init_args": {"folder": "~/out"}}
    paths = {"checkpoint": "~/a.ckpt", "priors": ["~/b.ckpt", "s3://x/~/c.ckpt"], "samples": {"a": "~/d"}}
    model = {"class_path": "tests.fake_jobs.PathModule", "init_args": paths}
    trainer = JOB["trainer"] | {"default_root_dir": "~/run", "callbacks": [callback]}
    write(job / "home/job.yaml", JOB | {"trainer": trainer, "model": model})
    options = ["--model.others", "{a: ~/x, c: ~}", "--model.plain=~/y"]
    cli.main(["fit", *options, "--wandb.name=~/n", "--wandb.mode=disabled", "--config=~/job.yaml"])
    home, model, trainer = f"{job}/home", built[0].model, built[0].trainer
    assert model.checkpoint == Path(home, "a.ckpt")
    assert model.priors == [f"{home}/b.ckpt", "s3://x/~/c.ckpt"]
    assert model.samples == {"a": f"{home}/d"}
    assert model.others == {"a": f"{home}/x", "c": None}  # a plain ~ is YAML's null
    assert model.plain == f"{home}/y"
    assert trainer.default_root_dir == f"{home}/run"
    assert [each.folder for each in trainer.callbacks if hasattr(each, "folder")] == [f"{home}/out"]
    assert built[0].config.fit.wandb.name == "~/n"  # a name is no path
    assert not (job / "~").exists()


def test_a_run_below_the_home_goes_on_there(job, capsys):
    cli.main(["fit", "-c", "job.yaml", "--trainer.default_root_dir=~/run"])
    assert torch.load(job / "home/run/last.ckpt", weights_only=True)["global_step"] == 6
    saved = yaml.safe_load((job / "home/run/config.yaml").read_text())
    assert saved["trainer"]["default_root_dir"] == f"{job}/home/run"
    capsys.readouterr()
    cli.main(["test", "-c", "job.yaml", "--ckpt_path=~/run/last.ckpt"])
    assert f"{0.64**6:.4f}"[:6] in capsys.readouterr().out
    assert sorted(path.name for path in job.iterdir()) == ["home", "job.yaml", "run"]


def test_a_home_that_is_not_there_names_the_option(job, capsys):
    status, message = failure(capsys, "fit", "-c", "job.yaml", "--trainer.default_root_dir=~no-such-user/run")
    assert (status, message.startswith("'trainer.default_root_dir': ~no-such-user/run: ")) == (2, True)


def test_a_key_given_twice_in_an_option(job, capsys):
    config = {"class_path": "tests.fake_jobs.PathModule", "init_args": {"checkpoint": "x"}}
    write(job / "paths.yaml", {"model": config})
    command = ["fit", "-c", "job.yaml", "-c", "paths.yaml", "--model.samples", "{a: x, b: y, a: z}"]
    status, message = failure(capsys, *command)
    assert (status, "'a' is given twice" in message) == (2, True)


def test_a_folder_whose_name_is_no_text(job):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    cli.main(["fit", "-c", "job.yaml", "--trainer.default_root_dir", name])
    assert (job / name / "last.ckpt").is_file()
    assert (job / name / "config.yaml").is_file()
