"""Small training runs for the tests: images and codes of noise, an autoencoder, a trainer without files."""

import torch
from PIL import Image

from tests.quiet import quiet_trainer
from vqvae2.data.images import ImageDataModule
from vqvae2.data.latent_shards import write_shard
from vqvae2.data.latents import LatentSpec, Level, Manifest, write_manifest
from vqvae2.training.autoencoder import AutoencoderModule
from vqvae2.training.schedules import Constant

CODEBOOK = {"num_codes": 16, "code_dim": 4, "decay": 0.9, "eps": 1e-5}
NETWORK = {"num_levels": 2, "factor": 2, "hidden": 8, "residual": 4, "residual_blocks": 1, **CODEBOOK}
SPEC = LatentSpec((Level("top", 4, 4, 7), Level("mid", 8, 8, 9), Level("bottom", 16, 16, 5)), 3, "a" * 64)


def trainer(steps, **options):
    return quiet_trainer(max_steps=steps, **{"devices": 1, **options})


def write_images(root):
    """20 training and 5 held-out images of noise, 8x8."""
    generator = torch.Generator().manual_seed(0)
    for split, count in {"train": 20, "val": 5}.items():
        (root / split).mkdir()
        for i in range(count):
            pixels = torch.randint(256, (8, 8, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(root / split / f"{i:02d}.png")
    return root


def write_latents(folder):
    """20 training and 7 held-out samples of three levels' codes, at random."""
    torch.manual_seed(0)
    splits = {}
    for split, count in {"train": 20, "val": 7}.items():
        codes = [torch.randint(level.num_codes, (count, level.height, level.width)) for level in SPEC.levels]
        shard = write_shard(
            folder,
            f"{split}/000000.tar",
            SPEC,
            codes=[level.numpy() for level in codes],
            labels=torch.randint(3, (count,)).numpy(),
            keys=[str(i) for i in range(count)],
            samples_per_record=8,
        )
        splits[split] = (shard,)
    write_manifest(folder, Manifest(SPEC, (), {}, splits))
    return str(folder)


def image_data(images, batch_size=4):
    where = {"train": str(images / "train"), "val": str(images / "val")}
    return ImageDataModule(**where, image_size=8, batch_size=batch_size)


def autoencoder_module(**changes):
    torch.manual_seed(0)
    options = {"schedule": Constant(1e-3), "beta": 0.25, "polyak": 0.9, **NETWORK, **changes}
    return AutoencoderModule(**options)


def fit_autoencoder(images, steps, batch_size=4, module=None, **options):
    module = module or autoencoder_module()
    trainer(steps, **options).fit(module, image_data(images, batch_size))
    return module
