"""A run that is killed and started again by the same command ends as one that never was: to the bit."""

import os
import random
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

from tests import fit_runs
from tests.fit_runs import final_state, first_difference, kill_at, run, said, write_config
from vqvae2.cli import suite as cli
from vqvae2.runs import checkpoint_files
from vqvae2.runs.loggers import MetricsFile

MOMENTS = [  # in a step; with a checkpoint written and not renamed; not yet synced; a row not yet logged
    *((torch.optim.Adam, "step", call) for call in (2, 5, 6)),
    *((os, "replace", call) for call in (2, 3)),
    *((os, "fsync", call) for call in (1, 3)),
    *((MetricsFile, "log_metrics", call) for call in (3, 6, 8)),
]
TOKENIZERS = {
    "autoencoder": fit_runs.autoencoder(revive_below=0.02, level_dropout=0.5, codebook_init="data"),
    "hr": fit_runs.hr_vqvae(revive_below=0.02),
}
PRIORS = {
    "prior": fit_runs.top_prior(dropout=0.3),
    "path": fit_runs.path_prior(level="mid", depth=2, dropout=0.3),
}
OFTEN = ("--checkpoint.every_steps", "3")


def job(folder: Path, what: str, images: Path, latents: str, **trainer) -> Path:
    """A folder with `job.yaml`, of a run that draws at random wherever it can."""
    folder.mkdir()
    if what in TOKENIZERS:
        model, data = TOKENIZERS[what], fit_runs.image_data(images, augment={"flip": True})
    else:
        model, data = PRIORS[what], fit_runs.latent_data(latents)
    write_config(folder / "job.yaml", model=model, data=data, **trainer)
    return folder


def killed_and_done(folder: Path, moments: list, *, ranks: int = 1) -> None:
    """Starts a run until it ends, killing it once at each of the moments."""
    for moment in moments:

        def before(rank: int, moment: tuple = moment) -> None:
            if rank == ranks - 1 or moment[0] is not torch.optim.Adam:
                kill_at(*moment)

        codes = run(folder, *OFTEN, ranks=ranks, before=before)
        assert codes == [-signal.SIGKILL] * ranks, said(folder)
    assert run(folder, *OFTEN, ranks=ranks) == [0] * ranks, said(folder)


@pytest.mark.parametrize(
    ("what", "ranks", "kills"),
    [("autoencoder", 1, 5), ("prior", 1, 3), ("prior", 2, 1), ("hr", 1, 3), ("path", 1, 2)],
    ids=str,
)
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, images, latents, what, ranks, kills):
    whole, killed = (job(tmp_path / name, what, images, latents) for name in ("whole", "killed"))
    assert run(whole, ranks=ranks) == [0] * ranks, said(whole)
    killed_and_done(killed, random.Random(what).sample(MOMENTS, kills), ranks=ranks)
    assert first_difference(final_state(killed), final_state(whole)) is None
    assert not list((killed / "run").glob("*.part"))


def test_accumulated_batches_and_epochs_that_do_not_fit_them(tmp_path, images, latents):
    """Five batches an epoch, two a step, a validation after every third batch: most are within a step."""
    options = {"accumulate_grad_batches": 2, "val_check_interval": 3}
    whole, killed = (
        job(tmp_path / name, "autoencoder", images, latents, **options) for name in ("whole", "killed")
    )
    assert run(whole) == [0], said(whole)
    killed_and_done(killed, [(torch.optim.Adam, "step", 5), (os, "fsync", 3), (torch.optim.Adam, "step", 4)])
    assert first_difference(final_state(killed), final_state(whole)) is None


def test_a_longer_run_goes_on_where_the_shorter_one_ended_in_the_middle_of_an_epoch(
    tmp_path, images, latents
):
    whole, twice = (job(tmp_path / name, "prior", images, latents) for name in ("whole", "twice"))
    assert run(whole) == run(twice, "--trainer.max_steps", "7") == [0]
    assert run(twice) == [0]
    found, wanted = final_state(twice), final_state(whole)
    validations = ("epoch_loop.val_loop.batch_progress",)
    for state in (found, wanted):
        for name in validations:
            state["loops"]["fit_loop"].pop(name)
    assert first_difference(found, wanted) is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images, latents):
    """Folders with runs that are done, an autoencoder's and a prior's."""
    root = tmp_path_factory.mktemp("trained")
    folders = {what: job(root / what, what, images, latents) for what in ("autoencoder", "prior")}
    for folder in folders.values():
        assert run(folder, "--checkpoint.keep", "2") == [0], said(folder)
    return folders


def outcome(capsys, caplog, *args: str) -> tuple[int, str]:
    """Exit status and what a command has said, on one line."""
    capsys.readouterr()
    caplog.clear()
    status = 0
    try:
        cli.main(list(args))
    except SystemExit as end:
        status = end.code
    out, err = capsys.readouterr()
    return status, " ".join((out + err + caplog.text).split())


@pytest.fixture
def go_on(trained, tmp_path, monkeypatch, capsys, caplog):
    """Starts a finished run of 13 steps again, to go on to step 14, with other arguments."""

    def start(what: str, *args: str) -> tuple[int, str]:
        if not (tmp_path / "job.yaml").exists():
            shutil.copytree(trained[what], tmp_path, dirs_exist_ok=True)
            monkeypatch.chdir(tmp_path)
        return outcome(capsys, caplog, "fit", "-c", "job.yaml", "--trainer.max_steps", "14", *args)

    return start


REFUSED = [
    ("prior", ("--data.batch_size", "5"), "data.batch_size was 4, is 5 (some samples of this epoch would"),
    ("prior", ("--data.seed", "1"), "data.seed was 0, is 1 (the order of the samples"),
    ("prior", ("--seed_everything", "3"), "seed_everything was 0, is 3 (the random numbers"),
    ("prior", ("--trainer.precision", "bf16-mixed"), "trainer.precision was '32-true', is 'bf16-mixed'"),
    ("prior", ("--trainer.accumulate_grad_batches", "2"), "accumulate_grad_batches was 1, is 2"),
    ("prior", ("--model.polyak", "0.25"), "model.polyak was 0.5, is 0.25"),
    ("prior", ("--trainer.devices", "2", "--trainer.strategy", "ddp"), "processes was 1, is 2 (each process"),
    ("autoencoder", ("--data.augment.shift", "1"), "data.augment.shift was 0, is 1"),
    ("autoencoder", (), "max_steps was 13, is 14 (the learning rates so far"),  # a cosine
]


@pytest.mark.parametrize(("what", "args", "reason"), REFUSED)
def test_another_run_is_refused_with_both_values(go_on, what, args, reason):
    status, message = go_on(what, *args)
    assert status == 1
    assert reason in message
    assert "--resume false" in message
    assert "--allow_inexact_resume true" in message


def test_another_dataset_is_refused_and_the_same_one_elsewhere_is_not(go_on, images, tmp_path):
    args = ("autoencoder", "--trainer.max_steps", "13", "--data.train")
    shutil.copytree(images / "train", tmp_path / "elsewhere/train")
    with pytest.warns(UserWarning, match=r"data are in another place now; .*: "):
        status, message = go_on(*args, str(tmp_path / "elsewhere/train"))
    assert (status, "nothing is left to do" in message) == (0, True)
    (tmp_path / "elsewhere/train/00.png").unlink()
    status, message = go_on(*args, str(tmp_path / "elsewhere/train"))
    assert (status, "data.names_and_labels was '" in message) == (1, True)


def test_other_pictures_of_the_same_names_are_refused_and_copies_are_not(go_on, images, tmp_path):
    args = ("autoencoder", "--trainer.max_steps", "13", "--data.train", str(tmp_path / "copies"))
    shutil.copytree(images / "train", tmp_path / "copies", copy_function=shutil.copyfile)  # of other times
    status, message = go_on(*args)
    assert (status, "nothing is left to do" in message) == (0, True)
    picture = tmp_path / "copies/07.png"
    ImageOps.invert(Image.open(picture)).save(picture)
    status, message = go_on(*args)
    assert (status, "data.contents.train was '" in message) == (1, True)
    assert "names_and_labels" not in message


def test_a_checkpoint_from_before_contents_were_kept_goes_on(go_on, images, tmp_path):
    def stop():
        assert go_on("autoencoder", "--trainer.max_steps", "13")[0] == 0
        return tmp_path / "run/last.ckpt"

    path = stop()
    checkpoint = torch.load(path, weights_only=True)
    contents = [name for name in checkpoint["run"] if name.startswith("data.contents.")]
    assert contents == ["data.contents.train", "data.contents.val"]
    for name in contents:
        del checkpoint["run"][name]
    torch.save(checkpoint, path)
    stop()


@pytest.mark.parametrize("args", [("--model.hidden", "16"), ("--model.dropout", "0.5")])
def test_another_network_is_refused_whatever_is_allowed(go_on, args):
    status, message = go_on("prior", *args, "--allow_inexact_resume", "true")
    assert (status, "run/last.ckpt holds another network: " in message) == (1, True)


def test_what_is_not_exact_can_be_accepted_and_is_said(go_on):
    args = ("--data.batch_size", "6", "--trainer.max_steps", "22", "--allow_inexact_resume", "true")
    with pytest.warns(UserWarning, match=r"is not exact: data.batch_size was 4, is 6"):
        status, _ = go_on("prior", *args)
    assert status == 0
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 22


def test_what_is_exact_goes_on_without_a_word(go_on):
    args = (
        "--data.num_workers",
        "1",
        "--trainer.val_check_interval",
        "3",
        "--model.checkpoint_layers",
        "true",
    )
    assert go_on("prior", *args)[0] == 0
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 14


def test_a_run_that_is_done_says_so_and_another_can_start_in_its_place(go_on):
    status, message = go_on("prior", "--trainer.max_steps", "13")
    assert status == 0
    assert "run/last.ckpt is at step 13 of trainer.max_steps 13: nothing is left to do." in message
    old = Path("run/last.ckpt").read_bytes()
    assert go_on("prior", "--trainer.max_steps", "2", "--resume", "false")[0] == 0
    assert torch.load("run/last.ckpt", weights_only=True)["global_step"] == 2
    assert Path("run/earlier-1/last.ckpt").read_bytes() == old
    assert Path("run/earlier-1/metrics.csv").exists()
    assert "resume" not in Path("run/config.yaml").read_text()


def test_a_job_that_slurm_starts_again_goes_on_whatever_its_command_says(go_on, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    status, message = go_on("prior", "--trainer.max_steps", "13", "--resume", "false")
    assert (status, "nothing is left to do" in message) == (0, True)


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_torn_checkpoint_is_refused_and_the_one_before_it_named(go_on, damage):
    assert go_on("prior", "--trainer.max_steps", "13")[0] == 0
    last = Path("run/last.ckpt")
    content = bytearray(last.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        weights = max(torch.load(last, weights_only=True)["state_dict"].values(), key=torch.Tensor.numel)
        content[content.index(weights.numpy().tobytes())] ^= 1
    last.unlink()  # step-00000013.ckpt is another name of the same file
    last.write_bytes(content)
    status, message = go_on("prior")
    assert status == 1
    assert "run/last.ckpt cannot be read as a checkpoint" in message
    assert "--ckpt_path run/step-00000013.ckpt" in message
    last.unlink()
    assert go_on("prior", "--ckpt_path", "run/step-00000013.ckpt")[0] == 0


def test_old_checkpoints_are_pruned_by_their_steps(trained):
    names = sorted(path.name for path in (trained["prior"] / "run").iterdir())
    assert names == [
        *("best.ckpt", "config.yaml", "last.ckpt", "metrics.csv"),
        *("step-00000012.ckpt", "step-00000013.ckpt"),
    ]


def test_a_full_disk_leaves_the_last_checkpoint_and_is_said(tmp_path, images, latents):
    """A limit on the size of files stands for the disk."""
    folder = job(tmp_path / "job", "prior", images, latents)
    assert run(folder, "--trainer.max_steps", "5") == [0]
    before = (folder / "run/last.ckpt").read_bytes()

    def fill(rank: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    assert run(folder, before=fill) == [1]
    message = said(folder)
    assert "Training goes on; the checkpoint of step 5 stays." in message
    assert "last.ckpt could not be written to run (" in message
    assert message.endswith("Make room and start again: the run goes on from step 5.")
    assert (folder / "run/last.ckpt").read_bytes() == before
    assert not list((folder / "run").glob("*.part"))


def test_a_folder_takes_another_folders_place_or_the_old_one_is_found(tmp_path, monkeypatch):
    """As sharded training writes it: at no moment is neither there."""
    for name, text in (("last.ckpt", "old"), ("new", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.pt").write_text(text)
    last, calls, replace = tmp_path / "last.ckpt", [], os.replace

    def seen(*args: object) -> None:
        replace(*args)
        calls.append((checkpoint_files.find_last(tmp_path) / "meta.pt").read_text())

    monkeypatch.setattr(os, "replace", seen)
    checkpoint_files.put_in_place(tmp_path / "new", last)
    assert calls == ["old", "new"]
    replace(last, tmp_path / "last.ckpt.old")
    (tmp_path / "last.ckpt.part").mkdir()
    checkpoint_files.recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
