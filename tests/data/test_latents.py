"""Latent shards and the DataModule that reads them."""

import dataclasses
import io
import json
import pickle
import shutil

import lightning as L
import numpy as np
import pytest
import torch
import webdataset

from tests.data.latent_folder import NUM_TRAIN, NUM_VAL, SPEC, TRUTH, epoch_of, module, write_folder
from tests.quiet import quiet_trainer
from tests.ranks import run_ranks
from vqvae2.data.latent_module import LatentDataModule, LatentDataset
from vqvae2.data.latents import LatentSpec, encode_command, read_manifest, write_manifest


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "runs" / "demo" / "latents")


def assert_true_samples(batch, split):
    codes, labels = TRUTH[split]
    for found, stored in zip(batch.codes, codes, strict=True):
        assert found.dtype == torch.int64
        assert np.array_equal(found, stored[batch.index])
    assert batch.labels.dtype == torch.int64
    assert np.array_equal(batch.labels, labels[batch.index])


def test_webdatasets_own_pipeline_reads_what_was_written(folder):
    manifest = read_manifest(folder)
    urls = [str(folder / shard.file) for shard in manifest.splits["train"]]
    records = list(webdataset.WebDataset(urls, shardshuffle=False))
    codes, labels = TRUTH["train"]
    for name, stored in [("top.npy", codes[0]), ("bottom.npy", codes[1]), ("label.npy", labels)]:
        parts = [np.load(io.BytesIO(record[name]), allow_pickle=False) for record in records]
        assert np.array_equal(np.concatenate(parts), stored)
        assert parts[0].dtype == (np.int64 if name == "label.npy" else np.uint16)
    keys = [key for record in records for key in json.loads(record["keys.json"])]
    assert keys == [f"image{i}" for i in range(NUM_TRAIN)]
    assert len({record["__key__"] for record in records}) == len(records) == 3 + 3 + 1


def test_the_bytes_of_a_shard_depend_on_its_samples_alone(tmp_path):
    first, second = write_folder(tmp_path / "a"), write_folder(tmp_path / "b")
    assert read_manifest(first) == read_manifest(second)  # with the hashes of all shards
    assert (first / "manifest.json").read_bytes() == (second / "manifest.json").read_bytes()


def test_a_spec_survives_json():
    assert LatentSpec.from_dict(json.loads(json.dumps(SPEC.to_dict()))) == SPEC


@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_epochs_visit_every_sample_once_in_different_orders(folder, num_workers):
    loader = module(folder, num_workers=num_workers).train_dataloader()
    orders = []
    for epoch in (0, 1):
        batches = epoch_of(loader, epoch)
        for batch in batches:
            assert_true_samples(batch, "train")
        orders.append(torch.cat([batch.index for batch in batches]).tolist())
        assert sorted(orders[-1]) == list(range(NUM_TRAIN))
    assert orders[0] != orders[1]
    again = epoch_of(module(folder).train_dataloader(), 1)  # same seed, without workers
    assert torch.cat([batch.index for batch in again]).tolist() == orders[1]


def test_held_out_samples_come_in_the_order_of_the_data(folder):
    batches = list(module(folder).val_dataloader())
    assert torch.cat([batch.index for batch in batches]).tolist() == list(range(NUM_VAL))
    for batch in batches:
        assert_true_samples(batch, "val")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_ranks_see_together_what_one_rank_sees(folder, num_workers):
    def mine():
        batches = epoch_of(module(folder, num_workers=num_workers).train_dataloader(), 4)
        return [[part.numpy() for part in (*batch.codes, batch.labels, batch.index)] for batch in batches]

    alone = epoch_of(module(folder).train_dataloader(), 4)
    for single, *parts in zip(alone, *run_ranks(mine), strict=True):
        together = [np.concatenate(part) for part in zip(*parts, strict=True)]
        for found, wanted in zip(together, (*single.codes, single.labels, single.index), strict=True):
            assert np.array_equal(found, wanted)


def test_a_data_set_that_was_read_can_be_sent_to_a_spawned_worker(folder):
    dataset = LatentDataset(folder, read_manifest(folder), "train")
    unread = len(pickle.dumps(dataset))
    wanted = dataset[(0, 30)]
    sent = pickle.dumps(dataset)
    assert len(sent) == unread  # the mapped files stay behind
    assert torch.equal(pickle.loads(sent)[(0, 30)].codes[1], wanted.codes[1])


def test_a_folder_without_held_out_samples_trains(tmp_path):
    manifest = read_manifest(write_folder(tmp_path))
    shutil.rmtree(tmp_path / "val")
    write_manifest(tmp_path, dataclasses.replace(manifest, splits={"train": manifest.splits["train"]}))
    data = module(tmp_path)
    assert len(data.train_dataloader()) == 5
    assert data.val_dataloader() == []


def test_the_mending_command_of_a_folder_and_of_a_checkpoint():
    for path in ("runs/x/latents", "runs/x/top/best.ckpt"):
        assert encode_command(path).startswith("make encode-latents CONFIG=x ")


class Watcher(L.LightningModule):
    """Notes what a real Trainer hands to a module."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {}

    def training_step(self, batch, _):
        self.seen.setdefault(self.current_epoch, []).extend(batch.index.tolist())
        return self.weight * 0

    def validation_step(self, batch, _):
        assert_true_samples(batch, "val")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_lightning_announces_the_epochs(folder, num_workers):
    watcher = Watcher()
    data = LatentDataModule(latents=str(folder), batch_size=10, num_workers=num_workers)
    quiet_trainer(max_epochs=3).fit(watcher, data)
    assert [sorted(order) for order in watcher.seen.values()] == [list(range(NUM_TRAIN))] * 3
    assert len({tuple(order) for order in watcher.seen.values()}) == 3
