"""[M]: SUNDAE on pixels, and on CIFAR-10, which [M] does not have."""

from tests.paper_numbers.sundae import stepping
from tests.paper_numbers.table import jobs, listed, same

SUNDAE_GREY = ("sundae_mnist", "sundae_fashion_mnist")

# [M] section 4.2: the grey values of pixels are the codes, and there is no autoencoder.
PIXELS = (
    same(
        "[M] table 3",
        jobs(SUNDAE_GREY, "top"),
        {
            "model.unroll": 2,
            **listed("model.depth", 2, 8, 2),
            "model.width": 1024,
            "model.heads": 8,
            "model.weight_decay": 0.01,  # A.1: PyTorch's AdamW, its default
        },
    ),
    same(
        "[M] table 3: latent shape, 28x28",
        (*jobs(SUNDAE_GREY, "vqvae"), *jobs(SUNDAE_GREY[:1], "encode", "eval", "classifier", "cas")),
        {"data.image_size": 28},
    ),
    same("[M] section 4.2: grey", jobs(SUNDAE_GREY, "vqvae"), {"data.channels": 1, "data.num_classes": 10}),
    same(
        "[SV]",
        jobs(SUNDAE_GREY, "top"),
        {
            "model.head_width": 64,
            "model.dropout": 0,
            "model.polyak": 0,
            "model.schedule": "Constant",
            "model.schedule.learning_rate": 3e-5,
            "data.batch_size": 8,
        },
    ),
    same("50 epochs", jobs(SUNDAE_GREY, "top"), {"trainer.max_steps": 50 * 60_000 // 8}),
    same(
        "[SV]",
        ("sundae_mnist_sample",),
        {**stepping(50, 1.0, 0.9, 0.9), "model.steps.0.min_steps": 10},
    ),
    same(
        "[M] section 3.6: 0.3 to 0.5; the rest as the samples",
        ("sundae_mnist_complete",),
        {**stepping(50, 1.0, 0.5, 0.3), "model.steps.0.min_steps": 10},
    ),
    same(
        "nothing to train",
        jobs(SUNDAE_GREY, "vqvae"),
        {"model": "PixelValuesModule", "trainer.max_steps": 1, "trainer.val_check_interval": 1},
    ),
    same("how often we look", jobs(SUNDAE_GREY, "top"), {"trainer.val_check_interval": 5000}),
    same(
        "steps count, not epochs",
        jobs(SUNDAE_GREY, "vqvae", "top"),
        {"trainer.max_epochs": -1, "trainer.log_every_n_steps": 50},
    ),
    same(
        "as in small_mnist",
        jobs(SUNDAE_GREY, "vqvae"),
        {"data.augment.flip": False, "data.batch_size": 128, "data.cache": True, "data.num_workers": 1},
    ),
)  # fmt: skip

# CIFAR-10, which [M] does not have: as the demo, somewhat larger.
CIFAR = (
    same(
        "steps count, not epochs; how often we look; images of 32x32 fit the memory",
        ("sundae_cifar10_vqvae",),
        {
            "trainer.max_epochs": -1,
            "trainer.log_every_n_steps": 50,
            "trainer.val_check_interval": 1000,
            "data.cache": True,
            "data.num_workers": 1,
        },
    ),
    same(
        "as in cifar10",
        ("sundae_cifar10_vqvae",),
        {
            "trainer.max_steps": 4000,
            "data.num_classes": 10,
            "data.image_size": 32,
            "data.channels": 3,
            "data.augment.flip": True,
            "data.batch_size": 64,
            "model.num_codes": 512,
            "model.decay": 0.99,
            "model.eps": 1e-5,
            "model.codebook_init": "data",
            "model.revive_below": 0.02,
        },
    ),
    same(
        "as in sundae_demo, or wider",
        ("sundae_cifar10_vqvae",),
        {
            "model.schedule": "Cosine",
            "model.schedule.learning_rate": 0.002,
            "model.schedule.warmup": 50,
            **listed("model.betas", 0.5, 0.9),
            "model.polyak": 0.99,
            "model.pixel_weight": 1,
            "model.perceptual_weight": 0,
            "model.codebook_weight": 1,
            "model.beta": 0.25,
            "model.adversarial.start": 2000,
            "model.adversarial.warmup": 500,
            "model.adversarial.weight": 0.02,
            "model.discriminator.hidden": 32,
            "model.discriminator.layers": 2,
            "model.discriminator.norm_groups": 8,
            "model.discriminator.rate": 1,
            "model.resolution": 32,
            "model.hidden": 32,
            **listed("model.multipliers", 1, 2, 4),
            "model.residual_blocks": 1,
            "model.norm_groups": 8,
            "model.latent_channels": 64,
            "model.code_dim": 16,
        },
    ),
    same(
        "minutes on a processor",
        ("sundae_cifar10_top",),
        {
            "trainer.max_epochs": -1,
            "trainer.log_every_n_steps": 50,
            "trainer.val_check_interval": 500,
            "trainer.max_steps": 3000,
            "data.batch_size": 64,
            "model.schedule": "Cosine",
            "model.schedule.learning_rate": 0.001,
            "model.schedule.warmup": 100,
            "model.polyak": 0.995,
            "model.weight_decay": 0.01,
            "model.width": 192,
            "model.heads": 3,
            "model.head_width": 64,
            **listed("model.depth", 1, 4, 1),
            "model.dropout": 0.1,
            "model.unroll": 2,
        },
    ),
    same(
        "as in sundae_demo",
        ("sundae_cifar10_sample",),
        {**stepping(20, 0.5, 1.0, 0.6), "model.steps.0.min_steps": 10},
    ),
    same(
        "[M] section 3.6: 0.3 to 0.5; the rest as the samples",
        ("sundae_cifar10_complete",),
        {**stepping(20, 0.5, 0.5, 0.3), "model.steps.0.min_steps": 10},
    ),
)  # fmt: skip

TABLES = (*PIXELS, *CIFAR)

# [M] table 3: latent shape.
GRIDS = {f"{recipe}_vqvae": ((28, 28),) for recipe in SUNDAE_GREY}
