"""The command line on small fake jobs: composing, the run folder, and every mistake in one line."""

import csv
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.checkpoints import save_autoencoder
from vqvae2.cli import suite as cli
from vqvae2.cli.composition import UsageError, merge
from vqvae2.cli.recipes import config_files

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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with `job.yaml`, whose run folder is `run`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    write(tmp_path / "job.yaml", JOB | {"trainer": JOB["trainer"] | {"default_root_dir": "run"}})
    return tmp_path


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


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_bases_come_first_and_a_shared_one_once(tmp_path):
    a, b, c = tmp_path / "a.yaml", tmp_path / "parts/b.yaml", tmp_path / "parts/c.yaml"
    write(c, {})
    write(b, {"base": ["c.yaml"]})
    write(a, {"base": ["parts/b.yaml", "parts/c.yaml"]})
    found = config_files(["fit", f"--config={a}", "--x", "1"])
    assert [path.name for path in found] == ["c.yaml", "b.yaml", "a.yaml"]


def test_merging():
    under = {"a": {"x": 1, "y": [1]}, "k": 1, "model": {"class_path": "A", "init_args": {"p": 1}}}
    over = {"a": {"x": 2, "y+": [2]}, "l+": [3], "model": {"init_args": {"q": 2}}}
    merged = merge(under, over)
    assert merged["a"] == {"x": 2, "y": [1, 2]}
    assert merged["model"] == {"class_path": "A", "init_args": {"p": 1, "q": 2}}
    assert merge(merged, {"l+": [4]})["l+"] == [3, 4]
    assert merge(merged, {"model": {"class_path": "B"}})["model"] == {"class_path": "B"}
    assert merge({"model": {"init_args": {"p": 1}}}, {"model": {"class_path": "B"}})["model"] == {
        "class_path": "B",
        "init_args": {"p": 1},
    }
    assert under["a"] == {"x": 1, "y": [1]}


def test_a_config_that_builds_on_itself(tmp_path):
    write(tmp_path / "a.yaml", {"base": ["b.yaml"]})
    write(tmp_path / "b.yaml", {"base": ["a.yaml"]})
    with pytest.raises(UsageError, match=r"a\.yaml: builds on itself"):
        config_files(["fit", "-c", str(tmp_path / "a.yaml")])


def test_a_missing_base_names_both_files(tmp_path):
    write(tmp_path / "parts/fit.yaml", {})
    write(tmp_path / "a.yaml", {"base": ["parts/fti.yaml"]})
    with pytest.raises(
        UsageError, match=r"a.yaml: its base .*parts/fti.yaml does not exist. Did you mean .*fit.yaml"
    ):
        config_files(["fit", "-c", str(tmp_path / "a.yaml")])


def test_layers_merge_deeply_and_the_later_wins(folder, capsys):
    write(
        folder / "child.yaml",
        {
            "base": ["job.yaml"],
            "model": {"class_path": "tests.fake_jobs.FakeModule", "init_args": {"learning_rate": "1e-2"}},
            "data": {"init_args": {"batch_size": 2}},
        },
    )
    write(folder / "overlay.yaml", {"model": {"init_args": {"mode": "fancy"}}, "trainer": {"max_steps": 7}})
    config = composed(capsys, "-c", "child.yaml", "-c", "overlay.yaml", "--model.hidden", "5")
    assert config["model"]["init_args"] == {"hidden": 5, "learning_rate": 0.01, "mode": "fancy"}
    assert config["data"]["init_args"] == {"size": 16, "batch_size": 2, "augment": None}
    assert config["trainer"]["max_steps"] == 7
    assert config["trainer"]["default_root_dir"] == "run"
    assert config["trainer"]["use_distributed_sampler"] is False
    assert "base" not in config


def test_callbacks_are_appended_over_all_layers(folder, capsys):
    def callback(name: str) -> dict:
        return {"trainer": {"callbacks+": [{"class_path": f"lightning.pytorch.callbacks.{name}"}]}}

    write(folder / "part.yaml", callback("LearningRateMonitor"))
    write(folder / "child.yaml", {"base": ["job.yaml", "part.yaml"]} | callback("DeviceStatsMonitor"))
    write(folder / "overlay.yaml", callback("LearningRateFinder"))
    config = composed(capsys, "-c", "child.yaml", "-c", "overlay.yaml")
    names = [callback["class_path"].rpartition(".")[2] for callback in config["trainer"]["callbacks"]]
    assert names == ["LearningRateMonitor", "DeviceStatsMonitor", "LearningRateFinder"]


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


def weight(checkpoint: Path) -> float:
    return torch.load(checkpoint, weights_only=True)["state_dict"]["weight"].item()


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


MISTAKES = [
    (
        {"model": {"init_args": {"hiden": 3}}},
        "'model.hiden' is not an option of FakeModule. Did you mean 'hidden'?",
    ),
    (
        {"trainer": {"max_step": 3}},
        "'trainer.max_step' is not an option of Trainer. Did you mean 'max_steps'?",
    ),
    (
        {"checkpoint": {"monitr": "x"}},
        "'checkpoint.monitr' is not an option of RunCheckpoint. Did you mean 'monitor'?",
    ),
    ({"trainr": {"max_steps": 3}}, "'trainr.max_steps' is not an option. Did you mean 'trainer'?"),
    ({"model": {"init_args": {"hidden": "wide"}}}, "'model.hidden' wants int, found 'wide'."),
    (
        {"model": {"init_args": {"mode": "wild"}}},
        "'model.mode' wants Literal['plain', 'fancy'], found 'wild'.",
    ),
    (
        {"data": {"init_args": {"augment": {"flop": True}}}},
        "'data.augment.flop' is not an option of Augmentation. Did you mean 'flip'?",
    ),
    (
        {"model": {"class_path": "tests.fake_jobs.FakeModul"}},
        "'model': module 'tests.fake_jobs' has no attribute 'FakeModul'",
    ),
    (
        {"trainer": {"callbacks+": [{"class_path": "lightning.pytorch.callbacks.Monitr"}]}},
        "'trainer.callbacks': module 'lightning.pytorch.callbacks' has no attribute 'Monitr'",
    ),
    ({"base": "job.yaml"}, "'base' wants a list of files, found 'job.yaml'."),
]


@pytest.mark.parametrize(("config", "message"), MISTAKES)
def test_a_mistake_in_a_config_is_one_line_that_names_it(folder, capsys, config, message):
    write(folder / "wrong.yaml", config)
    assert failure(capsys, "fit", "-c", "job.yaml", "-c", "wrong.yaml") == (2, f"wrong.yaml: {message}")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "-c", "jib.yaml"], "jib.yaml: no such config. Did you mean job.yaml?"),
        (["fit"], "no model: name a config with -c configs/NAME.yaml."),
        (
            ["fti", "-c", "job.yaml"],
            "'fti' is not a command. Did you mean 'fit'? Commands are fit, validate, test, predict.",
        ),
        (
            [],
            "name a command (fit, validate, test, predict) and a config: lightning fit -c configs/NAME.yaml",
        ),
        (["fit", "-c", "job.yaml", "--model.hidden", "x"], "'model.hidden' wants int, found 'x'."),
        (
            ["fit", "-c", "job.yaml", "--trainer.max_step", "3"],  # argparse would take it for max_steps
            "'trainer.max_step' is not an option of Trainer. Did you mean 'max_steps'?",
        ),
        (["fit", "-c", "job.yaml", "stray"], "unrecognized arguments: stray."),
        (["fit", "-c", "job.yaml", "--model.hidden"], "--model.hidden wants a value."),
        (["fit", "-c"], "-c wants a value."),
        (
            ["fit", "-c", f"{CONFIGS}/demo_vqvae.yaml", "--data.augment.shft", "3"],
            "'data.augment.shft' is not an option of Augment. Did you mean 'shift'?",
        ),
        (  # an option that the class hands on to its network
            ["fit", "-c", f"{CONFIGS}/demo_vqvae.yaml", "--model.hiden", "3"],
            "'model.hiden' is not an option of AutoencoderModule. Did you mean 'hidden'?",
        ),
        (
            ["fit", "-c", "job.yaml", "--trainer.val_check_interval", "0"],
            "'trainer.val_check_interval' is 0, wanted steps (at least 1) or a fraction of an epoch.",
        ),
        (
            ["fit", "-c", f"{CONFIGS}/demo_encode.yaml"],
            "EncodeModule cannot fit, this config is for: lightning predict.",
        ),
        (
            ["test", "-c", f"{CONFIGS}/demo_vqvae.yaml"],
            "AutoencoderModule cannot test, this config is for: lightning fit or validate.",
        ),
        (
            ["fit", "-c", "job.yaml", "--trainer.use_distributed_sampler", "true"],
            "trainer.use_distributed_sampler must be false: the data modules deal samples to the ranks.",
        ),
        (
            ["fit", "-c", "job.yaml", "--trainer.default_root_dir", "null"],
            "trainer.default_root_dir is missing: name the run folder, such as runs/demo/vqvae.",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(folder, capsys, args, message):
    assert failure(capsys, *args) == (2, message)


def test_a_command_that_does_not_come_first(folder, capsys):
    assert failure(capsys, "--trainer.max_steps", "3")[1].startswith("name a command (fit, ")


IMAGES = {"class_path": "vqvae2.data.images.ImageDataModule", "init_args": {"train": "x", "batch_size": 1}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"trainer": 3}, "'trainer' wants a mapping of options, found 3."),
        ({"data": None}, "'data' wants a mapping of options, found None."),
        (
            {"data": IMAGES | {"init_args": IMAGES["init_args"] | {"image_size": 8, "augment": 3}}},
            "'data.augment' wants a mapping of options, found 3.",
        ),
    ],
)
def test_a_value_in_place_of_a_mapping(folder, capsys, config, message):
    write(folder / "wrong.yaml", config)
    assert failure(capsys, "fit", "-c", "job.yaml", "-c", "wrong.yaml") == (2, message)


def test_devices_that_are_no_number(folder, capsys):
    status, message = failure(capsys, "fit", "-c", "job.yaml", "--trainer.devices", "x")
    assert (status, message.startswith("'trainer': `devices`")) == (2, True)


def test_a_checkpoint_of_another_kind_or_none_at_all_is_refused_before_anything_is_built(folder, capsys):
    save_autoencoder(folder / "ae.ckpt")
    (folder / "junk.ckpt").write_bytes(b"junk" * 100)
    (folder / "folder.ckpt").mkdir()
    for name, message in (
        ("ae.ckpt", "ae.ckpt holds a network of kind 'autoencoder', wanted 'classifier'."),
        ("junk.ckpt", "junk.ckpt cannot be read as a checkpoint"),
        ("folder.ckpt", "There is no checkpoint folder.ckpt"),
    ):
        status, found = failure(capsys, "fit", "-c", f"{CONFIGS}/demo_classifier.yaml", "--ckpt_path", name)
        assert (status, found.startswith(message)) == (1, True)
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(("verb", "name"), [("validate", "vqvae"), ("test", "cas"), ("test", "classifier")])
def test_what_a_fit_trains_is_looked_at_as_it_was_last_saved(folder, capsys, verb, name):
    assert failure(capsys, verb, "-c", f"{CONFIGS}/demo_{name}.yaml") == (
        1,
        f"There is no checkpoint runs/demo/{name}/last.ckpt (--ckpt_path). Train it first, or name another.",
    )


def test_a_best_checkpoint_that_no_validation_has_written_names_the_last(folder, capsys):
    cli.main(["fit", "-c", "job.yaml"])
    status, message = failure(capsys, "test", "-c", "job.yaml", "--ckpt_path", "best")
    assert (status, message) == (
        1,
        "There is no checkpoint run/best.ckpt (--ckpt_path). The run was trained, but no validation has "
        "written it yet. Name run/last.ckpt, or let the run validate: trainer.val_check_interval within its "
        "steps, checkpoint.monitor with the figure that chooses.",
    )


def test_a_job_that_fails_before_its_first_batch_leaves_the_run_folder_alone(folder, capsys):
    wrong = ["fit", "-c", "job.yaml", "--checkpoint.monitor", "val/los"]
    failure(capsys, *wrong)
    assert not (folder / "run").exists()
    cli.main(["fit", "-c", "job.yaml"])
    before = (folder / "run/config.yaml").read_text()
    failure(capsys, *wrong, "--resume", "false")
    assert (folder / "run/config.yaml").read_text() == before


def test_a_file_that_is_not_yaml(folder, capsys):
    (folder / "wrong.yaml").write_text("trainer:\n  max_steps: [1\nmodel: 2\n")
    status, message = failure(capsys, "fit", "-c", "wrong.yaml")
    assert (status, message.partition(": not YAML")[0]) == (2, "wrong.yaml, line 3")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model.hidden", "0"], "hidden is a width of at least 1, found 0."),
        (
            ["--checkpoint.monitor", "val/los"],
            "checkpoint.monitor is 'val/los', but validation logs val/loss.",
        ),
        (
            ["--ckpt_path", "best"],
            "There is no checkpoint run/best.ckpt (--ckpt_path). Train it first, or name another.",
        ),
    ],
)
def test_an_error_of_ours_is_one_line_without_traceback(folder, capsys, args, message):
    assert failure(capsys, "fit", "-c", "job.yaml", *args)[1].endswith(message)
    assert not (folder / "run/last.ckpt").exists()


def test_an_output_folder_that_cannot_be_written_ends_the_run_before_it_starts(folder, capsys, monkeypatch):
    (folder / "file").write_text("in the way")
    status, message = failure(capsys, "fit", "-c", "job.yaml", "--trainer.default_root_dir", "file/run")
    assert (status, message) == (
        1,
        f"The output folder file/run cannot be made: {folder / 'file'} is a file.",
    )
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode, **_: Path(path) != folder and access(path, mode))
    status, message = failure(capsys, "fit", "-c", "job.yaml")
    assert (status, message.partition(":")[0]) == (1, "The output folder run cannot be written")
    assert not (folder / "run").exists()


def test_a_programming_error_keeps_its_traceback(folder):
    with pytest.raises(TypeError, match="a bug"):
        cli.main(["fit", "-c", "job.yaml", "--model", "tests.fake_jobs.BrokenModule", "--model.hidden", "1"])
    with pytest.raises(TypeError, match="not a width"):
        cli.main(["fit", "-c", "job.yaml", "--model", "tests.fake_jobs.UnbuildableModule"])


def test_debugging_shows_every_traceback(folder, monkeypatch):
    monkeypatch.setenv("VQVAE2_DEBUG", "1")
    with pytest.raises(ValueError, match="hidden is a width"):
        cli.main(["fit", "-c", "job.yaml", "--model.hidden", "0"])


def test_the_installed_command_fails_in_one_line_and_starts_without_what_it_does_not_need(folder):
    script = (
        "import sys; from vqvae2 import cli\n"
        "print({'wandb', 'webdataset'} & set(sys.modules))\n"
        "cli.main(['fit', '-c', 'absent/x.yaml'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "set()\n",
        "error: absent/x.yaml: no such config.\n",
    )
