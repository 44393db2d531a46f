"""What a run logs of its speed, waiting and memory."""

import time

import lightning as L
import pytest
import torch

from tests.fake_jobs import FakeData, FakeModule
from tests.quiet import quiet_trainer
from tests.ranks import run_ranks
from tests.training.training_run import autoencoder_module, image_data, write_images
from vqvae2.data.latents import LatentBatch
from vqvae2.runs import throughput
from vqvae2.runs.throughput import Throughput, batch_size, peak_memory_gb


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
    quiet_trainer(
        max_steps=5,
        log_every_n_steps=2,
        accumulate_grad_batches=2,
        limit_val_batches=0,
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


class Clock:
    """Moved by `pass_s` alone."""

    now = 0.0

    def pass_s(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """What moves the time: each batch 2 s, each step 6 s and each batch of a validation 100 s."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


class SlowData(FakeData):
    def __init__(self, clock):
        super().__init__(size=64)
        self.clock = clock

    def train_dataloader(self):
        def batches():
            for batch in self.loader:
                self.clock.pass_s(2)
                yield batch

        return batches()


class SlowModule(FakeModule):
    def __init__(self, clock):
        super().__init__(hidden=1)
        self.clock = clock
        self.speeds = []

    def training_step(self, batch):
        self.clock.pass_s(6)
        return super().training_step(batch)

    def validation_step(self, batch):
        self.clock.pass_s(100)

    def log_dict(self, values, **options):
        self.speeds.append(values)
        super().log_dict(values, **options)


def test_throughput_counts_samples_and_waiting(clock):
    module = SlowModule(clock)
    quiet_trainer(
        max_steps=8,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        log_every_n_steps=2,
        callbacks=[Throughput()],
    ).fit(module, SlowData(clock))
    # Of two steps each; the first, and the first after a validation, have no known start of their waiting.
    assert [values["speed/data_wait"] for values in module.speeds] == pytest.approx(
        [2 / 14, 2 / 14, 4 / 16, 2 / 14]
    )
    assert module.speeds[2]["speed/samples_per_s"] == pytest.approx(8 / 16)


def test_the_time_of_training_goes_on_when_a_run_is_resumed(clock, tmp_path):
    """The first batch of a start has no known wait."""

    def fit(steps, ckpt_path=None):
        trainer = quiet_trainer(
            max_steps=steps, log_every_n_steps=1, limit_val_batches=0, callbacks=[Throughput()]
        )
        trainer.fit(SlowModule(clock), SlowData(clock), ckpt_path=ckpt_path)
        return trainer

    first = fit(4)
    assert first.callback_metrics["speed/training_s"] == 3 * 2 + 4 * 6
    first.save_checkpoint(tmp_path / "last.ckpt")
    assert fit(7, tmp_path / "last.ckpt").callback_metrics["speed/training_s"] == 30 + 2 * 2 + 3 * 6


def test_samples_are_counted_by_the_first_tensor():
    codes = (torch.zeros(5, 4, 4), torch.zeros(5, 8, 8))
    assert batch_size(LatentBatch(codes, torch.zeros(5), torch.arange(5))) == 5
    assert batch_size({"names": ["a", "b"], "x": torch.zeros(2)}) == 2
    with pytest.raises(ValueError, match="no tensor"):
        batch_size(["a"])
