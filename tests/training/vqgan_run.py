"""Small runs of VQ-GAN for the tests."""

import torch

from tests.training.training_run import image_data, trainer
from vqvae2.training.schedules import Constant
from vqvae2.training.vqgan import Adversarial, Discriminator, VQGANModule

AVERAGES = {"codebook": "averages", "decay": 0.9, "eps": 1e-5}
NETWORK = {"hidden": 8, "multipliers": [1, 2], "residual_blocks": 1, "resolution": 8}
NETWORK |= {"attention_resolutions": [8], "norm_groups": 4, "latent_channels": 6}
NETWORK |= {"num_codes": 16, "code_dim": 4, "codebook": "gradient"}
# L2 and a small rate: the sign of a difference near 0, and Adam's step for a gradient that is rounding alone
# (of the keys' bias, which changes nothing), would not be those of one process where two are compared.
GAN = {"schedule": Constant(1e-4), "betas": (0.5, 0.9), "polyak": 0.9, "pixel": "l2", "pixel_weight": 1.0}
GAN |= {"perceptual": None, "perceptual_weight": 0.0, "codebook_weight": 1.0, "beta": 0.25}
GAN |= {"discriminator": Discriminator(hidden=8, layers=1, norm="group", norm_groups=4)}
LECAM = {"lecam": 0.1, "lecam_decay": 0.9}


def adversarial(start=3, warmup=2, **changes):
    """The discriminator is idle for a batch, then trained alone, and its gradient counts after three."""
    options = {"weight": 0.5, "weighting": "adaptive", "lambda_max": 1e4, **LECAM, **changes}
    return Adversarial(start=start, warmup=warmup, **options)


def vqgan_module(**changes):
    torch.manual_seed(0)
    return VQGANModule(**{**GAN, **NETWORK, "adversarial": adversarial(), **changes})


def fit_vqgan(images, steps, batch_size=4, module=None, resume=None, **options):
    module = module or vqgan_module()
    fitting = trainer(steps, log_every_n_steps=1, **options)
    torch.manual_seed(0)
    fitting.fit(module, image_data(images, batch_size), ckpt_path=resume, weights_only=False)
    return module
