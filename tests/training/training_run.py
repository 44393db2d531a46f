"""Small training runs for the tests: images of noise, an autoencoder, a trainer that leaves no files."""

import lightning as L
import torch
from PIL import Image

from vqvae2.data.images import ImageDataModule
from vqvae2.training.autoencoder import AutoencoderModule
from vqvae2.training.schedules import Constant

CODEBOOK = {"num_codes": 16, "code_dim": 4, "decay": 0.9, "eps": 1e-5}
NETWORK = {"num_levels": 2, "factor": 2, "hidden": 8, "residual": 4, "residual_blocks": 1, **CODEBOOK}


def trainer(steps, **options):
    options = {"devices": 1, "enable_progress_bar": False, "enable_model_summary": False, **options}
    return L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **options,
    )


def write_images(root):
    """20 training and 5 held-out images of noise, 8x8."""
    generator = torch.Generator().manual_seed(0)
    for split, count in {"train": 20, "val": 5}.items():
        (root / split).mkdir()
        for i in range(count):
            pixels = torch.randint(256, (8, 8, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(root / split / f"{i:02d}.png")
    return root


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
