"""Grey values as codes: nothing is lost, and the checkpoint without weights can be read."""

import lightning as L
import pytest
import torch

from vqvae2.data.images import ImageDataModule
from vqvae2.nn.contracts import Tokenizer
from vqvae2.nn.pixel_values import PixelValues
from vqvae2.pixels import from_uint8
from vqvae2.runs.health import Health
from vqvae2.storage.checkpoint import load_network, save_network
from vqvae2.training.pixel_values import PixelValuesModule


def test_codes_are_the_bytes_and_decode_to_them():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 8, 32)
    network = PixelValues(channels=1)
    (codes,) = network.encode(from_uint8(pixels))
    assert codes.dtype == torch.int64
    assert torch.equal(codes, pixels[:, 0].long())
    assert torch.equal(network.decode((codes,)), from_uint8(pixels))
    assert network.image_size(network.grids(8, 32)) == (8, 32)


def test_a_checkpoint_holds_it(tmp_path):
    save_network(tmp_path / "last.ckpt", PixelValues(channels=1), {"channels": 1}, image_size=28)
    network, facts = load_network(tmp_path / "last.ckpt", Tokenizer.kind)
    assert isinstance(network, PixelValues)
    assert facts["image_size"] == 28


def test_colours_are_refused():
    with pytest.raises(ValueError, match="channels is 3"):
        PixelValues(channels=3)


def test_a_fit_of_one_step_writes_it(tmp_path):
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        max_steps=1,
        val_check_interval=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[Health()],
    )
    digits = {"train": "demo:digits", "holdout": 0.1, "image_size": 28, "channels": 1, "batch_size": 64}
    trainer.fit(PixelValuesModule(), ImageDataModule(**digits))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert trainer.callback_metrics["val/mse"] == 0
    assert isinstance(load_network(tmp_path / "last.ckpt", Tokenizer.kind).network, PixelValues)
