"""Mistakes of the user end in one line that names them, and those of the code keep their traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import save_autoencoder
from tests.cli.fake_job import CONFIGS, failure, write
from vqvae2.cli import suite as cli

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
        (  # an option's name in earlier versions
            ["test", "-c", f"{CONFIGS}/demo_eval.yaml", "--model.critic", "last.ckpt"],
            "'model.critic' is not an option of EvaluationModule. Did you mean 'rejection_classifier'?",
        ),
        (
            ["predict", "-c", f"{CONFIGS}/demo_sample.yaml", "--model.critic", "last.ckpt"],
            "'model.critic' is not an option of SampleModule. Did you mean 'rejection_classifier'?",
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


@pytest.mark.parametrize("name", ["VerdictPictures", "vqvae2.evaluation.pictures.VerdictPictures"])
def test_the_name_of_a_class_in_earlier_versions(folder, capsys, name):
    write(folder / "old.yaml", {"trainer": {"callbacks+": [{"class_path": name}]}})
    assert failure(capsys, "test", "-c", f"{CONFIGS}/demo_eval.yaml", "-c", "old.yaml") == (
        2,
        "old.yaml: 'trainer.callbacks': there is no class 'VerdictPictures'. "
        "Did you mean 'EvaluationPictures'?",
    )


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
