"""What callbacks and loggers leave in a run folder, and how they fare without an account or a validation."""

import csv
from types import SimpleNamespace
from typing import ClassVar

import lightning as L
import numpy as np
import pytest
import torch
import wandb
from PIL import Image

from tests.fake_jobs import FakeData, FakeModule
from tests.quiet import quiet_trainer
from vqvae2.runs.checkpoint_files import NotSaved, name_also, put_in_place
from vqvae2.runs.log_pictures import log_picture
from vqvae2.runs.loggers import MetricsFile, WandbLogger, WandbSettings
from vqvae2.runs.run_folder import RunCheckpoint


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def trainer(folder, **options):
    return quiet_trainer(enable_checkpointing=True, default_root_dir=folder, **options)


class Spy(RunCheckpoint):
    """Keeps what would be saved and in which step, and writes nothing."""

    def __init__(self, **options):
        super().__init__(**options)
        self.saved = []

    def _save(self, trainer, names, *_, **__):
        self.saved.append((*names, trainer.global_step))
        self._saved_step = trainer.global_step
        return True


def test_columns_grow_and_earlier_rows_stay(tmp_path):
    metrics = MetricsFile(tmp_path)
    metrics.log_metrics({"a": torch.tensor(1.5)}, step=0)
    metrics.log_metrics({"b": 2.0}, step=1)
    metrics.log_metrics({"a": 3.0, "b": 4.0}, step=2)
    assert rows(tmp_path / "metrics.csv") == [
        {"step": "0", "a": "1.5", "b": ""},
        {"step": "1", "a": "", "b": "2.0"},
        {"step": "2", "a": "3.0", "b": "4.0"},
    ]


def test_a_resumed_file_drops_what_was_lost_and_a_new_one_starts_anew(tmp_path):
    first = MetricsFile(tmp_path)
    for step in range(5):
        first.log_metrics({"old": float(step)}, step)
    MetricsFile(tmp_path, append=True).log_metrics(
        {"old": 3.0, "new": 7.0}, step=3
    )  # the checkpoint was made there
    assert rows(tmp_path / "metrics.csv") == [
        *({"step": str(step), "old": f"{step}.0", "new": ""} for step in range(3)),
        {"step": "3", "old": "3.0", "new": "7.0"},
    ]
    MetricsFile(tmp_path).log_metrics({"new": 8.0}, step=0)
    assert rows(tmp_path / "metrics.csv") == [{"step": "0", "new": "8.0"}]


def test_nan_is_never_best_and_hides_no_later_best(tmp_path):
    class Scripted(FakeModule):
        values = iter([float("nan"), 3.0, float("nan"), 2.0])

        def on_validation_epoch_end(self):
            self.log("score", next(self.values))

    spy = Spy(monitor="score")
    options = {"max_epochs": 4, "num_sanity_val_steps": 0, "callbacks": [spy]}
    trainer(tmp_path, **options).fit(Scripted(hidden=1), FakeData(size=4))
    assert spy.saved == [("last", 1), ("best", "last", 2), ("last", 3), ("best", "last", 4)]


def test_best_and_last_are_written_once_and_the_best_stays_when_last_goes_on(tmp_path):
    class Scripted(FakeModule):
        values = iter([1.0, 3.0, 2.0])

        def on_validation_epoch_end(self):
            self.log("score", next(self.values))

    checkpoint, names = RunCheckpoint(monitor="score"), ["best.ckpt", "last.ckpt"]

    class Watch(L.Callback):
        seen: ClassVar[list] = []

        def on_train_epoch_start(self, trainer, module):
            best, last = (tmp_path / name for name in names)
            if best.exists():
                self.seen.append(best.samefile(last))

    options = {"max_epochs": 3, "num_sanity_val_steps": 0, "callbacks": [checkpoint, Watch()]}
    trainer(tmp_path, **options).fit(Scripted(hidden=1), FakeData(size=4))
    assert Watch.seen == [True, False]
    steps = [torch.load(tmp_path / name, weights_only=True)["global_step"] for name in names]
    assert steps == [1, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_best_that_could_not_be_written_does_not_keep_out_the_next(tmp_path, monkeypatch):
    class Scripted(FakeModule):
        values = iter([1.0, 2.0])

        def on_validation_epoch_end(self):
            self.log("score", next(self.values))

    save, calls = L.Trainer.save_checkpoint, []

    def fails_once(self, path, *args, **options):
        calls.append(path)
        if len(calls) == 1:
            raise NotSaved("no room")
        save(self, path, *args, **options)

    monkeypatch.setattr(L.Trainer, "save_checkpoint", fails_once)
    options = {"max_epochs": 2, "num_sanity_val_steps": 0, "callbacks": [RunCheckpoint(monitor="score")]}
    with pytest.warns(UserWarning, match="no room. Training goes on"):
        trainer(tmp_path, **options).fit(Scripted(hidden=1), FakeData(size=4))
    assert torch.load(tmp_path / "best.ckpt", weights_only=True)["global_step"] == 2


def test_a_folder_of_shards_is_named_twice_and_one_name_outlives_the_other(tmp_path):
    part, best, last = (tmp_path / name for name in ("last.ckpt.part", "best.ckpt", "last.ckpt"))
    for step in (1, 2):
        part.mkdir()
        (part / "shard").write_bytes(bytes([step]))
        if step == 1:
            best.mkdir()
            (best / "old").touch()
            name_also(part, best)
            assert (best / "shard").samefile(part / "shard")
        put_in_place(part, last)
    assert [(path / "shard").read_bytes() for path in (best, last)] == [b"\1", b"\2"]
    assert [path.name for path in best.iterdir()] == ["shard"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_without_validation_every_epoch_is_kept_as_last(tmp_path):
    spy = Spy()
    options = {"max_epochs": 2, "limit_val_batches": 0, "callbacks": [spy]}
    trainer(tmp_path, **options).fit(FakeModule(hidden=1), FakeData(size=8, batch_size=4))
    assert spy.saved == [("last", 2), ("last", 4)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_written_pixel_for_pixel_by_rank_0_only(tmp_path, channels):
    picture = torch.arange(channels * 4 * 5, dtype=torch.uint8).reshape(channels, 4, 5)
    run = SimpleNamespace(default_root_dir=str(tmp_path), global_step=12, is_global_zero=False, loggers=[])
    path = log_picture(run, "val/samples", picture)
    assert path == tmp_path / "images/val-samples-0000012.png"
    assert not path.exists()
    run.is_global_zero = True
    log_picture(run, "val/samples", picture)
    found = np.asarray(Image.open(path)).reshape(4, 5, channels)
    assert np.array_equal(found, picture.permute(1, 2, 0).numpy())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.fixture
def no_account(tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_without_a_key_wandb_goes_offline_with_one_warning(tmp_path, no_account):
    with pytest.warns(UserWarning, match="W&B has no key") as warned:
        logger = WandbLogger(WandbSettings(), tmp_path)
    assert len(warned) == 1
    picture = torch.zeros(3, 8, 8, dtype=torch.uint8)
    run = SimpleNamespace(
        default_root_dir=str(tmp_path), global_step=3, is_global_zero=True, loggers=[logger]
    )
    log_picture(run, "samples", picture)
    logger.log_metrics({"loss": 1.0}, step=3)
    logger.experiment.finish()
    [folder] = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("run-*.wandb"))
    assert list(folder.glob("files/media/images/samples*.png"))


def test_a_run_that_goes_on_is_one_run_in_wandb(tmp_path, no_account):
    def run_id(*, append):
        logger = WandbLogger(WandbSettings(mode="offline"), tmp_path, append=append)
        logger.log_metrics({"loss": 1.0}, step=1)
        found = logger.experiment.id
        logger.experiment.finish()
        return found

    first = run_id(append=False)
    assert run_id(append=True) == first
    assert run_id(append=False) != first


def test_disabled_wandb_leaves_nothing(tmp_path, no_account, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbLogger(WandbSettings(), tmp_path)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.experiment.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("paste-your-key-here", "W&B does not accept the key .*40"),
        ("x" * 39, "W&B does not accept the key .*40"),
        ("<your key of 40 letters> " * 3 + "<your key>", "W&B does not accept the key"),
        (" \n", "W&B has no key"),
        ("paste-your-key-here\n", "W&B does not accept the key .*40"),
    ],
)
def test_a_key_that_is_none_warns_and_logs_offline(tmp_path, no_account, monkeypatch, key, reason):
    monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.warns(UserWarning, match=reason) as warned:
        logger = WandbLogger(WandbSettings(), tmp_path)
    assert len(warned) == 1
    assert "this run is logged offline" in str(warned[0].message)
    logger.log_metrics({"loss": 1.0}, step=3)
    logger.experiment.finish()
    [folder] = (tmp_path / "wandb").glob("offline-run-*")
    assert list(folder.glob("run-*.wandb"))


def test_a_server_that_refuses_the_key_leaves_the_run_offline(tmp_path, no_account, monkeypatch):
    logger = WandbLogger(WandbSettings(mode="offline"), tmp_path)
    logger._options["mode"] = "online"
    init = wandb.init

    def refused(**options):
        if options["mode"] == "online":
            raise wandb.errors.AuthenticationError("401")
        return init(**options)

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.warns(UserWarning, match=r"W&B did not start \(401\), so this run is logged offline"):
        logger.log_metrics({"loss": 1.0}, step=3)
    logger.experiment.finish()
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_token_without_a_file_is_left_out(tmp_path, no_account, monkeypatch):
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.warns(UserWarning, match="W&B's token is left out: WANDB_IDENTITY_TOKEN_FILE is .*/none"):
        logger = WandbLogger(WandbSettings(mode="offline"), tmp_path)
    logger.log_metrics({"loss": 1.0}, step=3)
    logger.experiment.finish()


def test_settings_that_wandb_does_not_know_are_refused_at_the_start(tmp_path, no_account):
    with pytest.raises(ValueError, match=r"^W&B cannot be set up: Invalid project name 'a/b'"):
        WandbLogger(WandbSettings(project="a/b", mode="offline"), tmp_path)
