"""The pictures drawn in training show what they say: every cell is compared with the image it stands for."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from tests.checkpoints import latent_spec, save_autoencoder, save_chain
from vqvae2.data.images import ImageBatch
from vqvae2.data.latents import LatentBatch
from vqvae2.pixels import to_uint8
from vqvae2.runs.previews import ReconstructionGrid, SampleGrid
from vqvae2.storage.checkpoint import load_network

SIDE = 16


def cell(picture, row, column):
    """The image at a place of a grid with a border of one pixel."""
    top, left = row * (SIDE + 1) + 1, column * (SIDE + 1) + 1
    return picture[:1, top : top + SIDE, left : left + SIDE]


def validate(callback, module, batches, trainer):
    callback.on_validation_epoch_start(trainer, module)
    for i, batch in enumerate(batches):
        callback.on_validation_batch_end(trainer, module, None, batch, i)
    callback.on_validation_epoch_end(trainer, module)


@pytest.fixture
def trainer(tmp_path):
    facts = {"sanity_checking": False, "is_global_zero": True, "loggers": [], "num_val_batches": [10]}
    return SimpleNamespace(**facts, default_root_dir=str(tmp_path), global_step=7)


def test_reconstructions_show_each_level_and_the_original_from_all_over_the_split(tmp_path, trainer):
    _, network = save_autoencoder(tmp_path / "a.ckpt")
    batches = [
        ImageBatch(torch.rand(4, 1, SIDE, SIDE) * 2 - 1, torch.zeros(4), torch.zeros(4), [])
        for _ in range(10)
    ]
    validate(
        ReconstructionGrid(num_samples=5), SimpleNamespace(whole_average=lambda: network), batches, trainer
    )
    picture = pil_to_tensor(Image.open(tmp_path / "images" / "reconstructions-0000007.png"))
    assert picture.shape[1:] == (5 * (SIDE + 1) + 1, 3 * (SIDE + 1) + 1)
    with torch.no_grad():
        for row, batch in enumerate(batches[::2]):
            image = batch.images[:1]
            codes = network.encode(image)
            for column, expected in enumerate((network.decode(codes, 1), network.decode(codes), image)):
                difference = cell(picture, row, column).int() - to_uint8(expected)[0].int()
                assert difference.abs().max() <= 1  # rounding may differ with the batch it was computed in


def test_sample_pairs_hold_the_reconstruction_and_a_sample_given_the_same_upper_levels(tmp_path, trainer):
    network, autoencoder, priors = save_chain(tmp_path)
    spec = latent_spec(network, 3)
    trainer.datamodule = SimpleNamespace(spec=spec, latents="latents")
    codes = [torch.randint(16, (6, level.height, level.width)) for level in spec.levels]
    batch = LatentBatch(tuple(codes), torch.randint(3, (6,)), torch.arange(6))
    trainer.num_val_batches = [1]
    for index, checkpoint in enumerate(priors):
        callback = SampleGrid(autoencoder, num_samples=4)
        prior = load_network(checkpoint, "prior").network
        module = SimpleNamespace(whole_average=lambda prior=prior: prior, index=index)
        callback.setup(trainer, module, "fit")
        validate(callback, module, [batch], trainer)
        picture = pil_to_tensor(Image.open(tmp_path / "images" / "samples-0000007.png"))
        expected = to_uint8(network.decode(codes, index + 1))
        for number in range(4):
            assert torch.equal(cell(picture, number // 4, 2 * number), expected[number])
            assert not torch.equal(cell(picture, number // 4, 2 * number + 1), expected[number])


def test_pictures_of_another_autoencoder_are_refused(tmp_path, trainer):
    network, _, _ = save_chain(tmp_path)
    other, _ = save_autoencoder(tmp_path / "other.ckpt", seed=1)
    trainer.datamodule = SimpleNamespace(spec=latent_spec(network, 3), latents="runs/x/latents")
    with pytest.raises(ValueError, match="make encode-latents CONFIG=x"):
        SampleGrid(other).setup(trainer, L.LightningModule(), "fit")


def test_pictures_are_drawn_every_nth_time(tmp_path, trainer):
    _, network = save_autoencoder(tmp_path / "a.ckpt")
    batch = ImageBatch(torch.zeros(1, 1, SIDE, SIDE), torch.zeros(1), torch.zeros(1), [])
    callback = ReconstructionGrid(num_samples=1, every_n_validations=2)
    for step in range(5):
        trainer.global_step = step
        validate(callback, SimpleNamespace(whole_average=lambda: network), [batch] * 10, trainer)
    drawn = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert drawn == [f"reconstructions-000000{step}.png" for step in (0, 2, 4)]
