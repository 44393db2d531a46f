"""What a run logs of its speed, waiting and memory; the arithmetic of speed is in `test_run`."""

import time

import lightning as L
import pytest
import torch

from tests.fake_jobs import FakeData, FakeModule
from tests.ranks import run_ranks
from tests.training.training_run import autoencoder_module, image_data, write_images
from vqvae2.runs import throughput
from vqvae2.runs.throughput import Throughput, peak_memory_gb


class Logged(L.Callback):
    """What was logged after each batch, and the samples since."""

    def __init__(self, watch):
        self.watch, self.samples = watch, []

    def on_train_batch_end(self, trainer, *_):
        self.samples.append(self.watch._samples)
        self.metrics = dict(trainer.callback_metrics)


def test_accumulated_batches_are_logged_once_a_step_and_all_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "peak_memory_gb", lambda device: 1.25)
    watch = Throughput()
    logged = Logged(watch)
    L.Trainer(
        accelerator="cpu",
        max_steps=5,
        log_every_n_steps=2,
        accumulate_grad_batches=2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[watch, logged],
    ).fit(autoencoder_module(), image_data(write_images(tmp_path), batch_size=2))
    assert logged.samples == [2, 4, 6, 0, 2, 4, 6, 0, 2, 4]  # two batches of two a step
    assert logged.metrics["memory/peak_gb"] == 1.25
    assert 0 < logged.metrics["speed/data_wait"] < 1
    assert logged.metrics["speed/samples_per_s"] > 0


def test_memory_is_the_process_at_its_largest():
    """In 10^9 bytes; what has been given back counts."""

    def work():
        cpu = torch.device("cpu")
        before = peak_memory_gb(cpu)
        big = torch.ones(50_000_000)
        during = peak_memory_gb(cpu)
        del big
        return before, during, peak_memory_gb(cpu)

    [(before, during, after)] = run_ranks(work, 1)
    assert 0.05 < before < 64
    assert during - before == pytest.approx(0.2, rel=0.1)
    assert after == pytest.approx(during, rel=0.01)


def test_the_time_of_training_goes_on_when_a_run_is_resumed(tmp_path, monkeypatch):
    """A clock that only data (2 s) and steps (6 s) move; the first batch of a start has no known wait."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def pass_s(seconds):
        nonlocal now
        now += seconds

    class SlowData(FakeData):
        def train_dataloader(self):
            def batches():
                for batch in self.loader:
                    pass_s(2)
                    yield batch

            return batches()

    class SlowModule(FakeModule):
        def training_step(self, batch):
            pass_s(6)
            return super().training_step(batch)

    def fit(steps, ckpt_path=None):
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            log_every_n_steps=1,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Throughput()],
        )
        trainer.fit(SlowModule(hidden=1), SlowData(size=64), ckpt_path=ckpt_path)
        return trainer

    first = fit(4)
    assert first.callback_metrics["speed/training_s"] == 3 * 2 + 4 * 6
    first.save_checkpoint(tmp_path / "last.ckpt")
    assert fit(7, tmp_path / "last.ckpt").callback_metrics["speed/training_s"] == 30 + 2 * 2 + 3 * 6
