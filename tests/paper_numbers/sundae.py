"""[M]: SUNDAE on VQ-GAN, and what it leaves open."""

from tests.paper_numbers.table import Table, jobs, listed, same

# The columns of [M] table 3.
SUNDAE = ("sundae_ffhq256", "sundae_ffhq1024", "sundae_celeba", "sundae_imagenet")
SUNDAE_256 = (SUNDAE[0], *SUNDAE[2:])
SUNDAE_FACES = SUNDAE[:3]
SUNDAE_FITS = jobs(SUNDAE, "vqvae", "top")


def stepping(steps: int, proportion: float, *temperature: float) -> dict[str, object]:
    """The rows of a sampler's steps."""
    return {
        "model.steps.0.steps": steps,
        **listed("model.steps.0.proportion", proportion, proportion),
        **listed("model.steps.0.temperature", *temperature),
    }


# [M] what it says.
PAPER = (
    Table(
        "[M] table 3: codebook size; latent shape, at section 4.1's and table 4's image sizes",
        jobs(SUNDAE, "vqvae"),
        {"model.num_codes": (1024, 8192, 1024, 1024), "data.image_size": (256, 1024, 256, 256)},
    ),
    Table(
        "[M] table 3: depth, attention heads",
        jobs(SUNDAE, "top"),
        {
            "model.depth.0": (3, 2, 2, 3),
            "model.depth.1": (16, 12, 12, 14),
            "model.depth.2": (3, 2, 2, 3),
            "model.heads": (8, 8, 8, 12),
        },
    ),
    same(
        "[M] table 3: unroll steps, dimension; A.1: PyTorch's AdamW, its default",
        jobs(SUNDAE, "top"),
        {"model.unroll": 3, "model.width": 1024, "model.weight_decay": 0.01},
    ),
    same(
        "[M] table 4: VQ-GAN at 1024x1024",
        ("sundae_ffhq1024_vqvae",),
        {
            **listed("model.multipliers", 1, 1, 2, 2, 4, 4),  # 128, 128, 256, 256, 512, 512
            "model.residual_blocks": 1,
            **listed("model.attention_resolutions", 64),
            "model.adversarial.start": 15_000,
            "model.adversarial.weight": 0.5,
            "data.batch_size": 4,
            "model.resolution": 1024,
        },
    ),
    same(
        "[M] table 4, which is [T]'s for 256x256 too: codeword dimension, channels, dropout, layers, weight",
        jobs(SUNDAE, "vqvae"),
        {
            "model.code_dim": 256,
            "model.hidden": 128,
            "model.dropout": 0,
            "model.discriminator.layers": 3,
            "model.codebook_weight": 1,
        },
    ),
    same(
        "[M] equation 7: mean absolute error, perceptual loss, lambda",
        jobs(SUNDAE, "vqvae"),
        {
            "model.pixel": "l1",
            "model.pixel_weight": 1,
            "model.perceptual.network": "lpips-vgg",
            "model.perceptual_weight": 1,
            "model.adversarial.weighting": "adaptive",
        },
    ),
    same(
        "[M] table 3: 60,000 of FFHQ's 70,000 to train",
        (*jobs(SUNDAE[:2], "vqvae"), *jobs(SUNDAE[:1], "encode", "eval")),
        {"data.holdout": 0.142857},
    ),
    same(
        "[M] section 3.1: a horizontal flip, no other augmentation",
        (*jobs(SUNDAE_FACES, "vqvae"), *jobs(SUNDAE_FACES[:1], "encode", "eval")),
        {
            "data.augment.flip": True,
            "data.augment.brightness": 0,
            "data.augment.hue": 0,
            "data.augment.saturation": 0,
            "data.augment.contrast": 0,
            "data.augment.noise_probability": 0,
            "data.augment.noise_std": 0,
        },
    ),
    same("[M] section 3.1: plain and mirrored", jobs(SUNDAE, "encode"), {"data.encode_flips": True}),
    same("[M] section 3.1: plain and mirrored", jobs(SUNDAE_FACES, "encode"), {"data.encode_views": 1}),
    same("[M] section 4.1", jobs(("sundae_ffhq256",), "encode", "eval"), {"data.image_size": 256}),
    same("[M] table 4", jobs(("sundae_ffhq1024",), "encode", "eval"), {"data.image_size": 1024}),
    same(
        "[M] table 1, figure 8, section 3.4 and figure 13",
        jobs(SUNDAE_FACES, "sample"),
        stepping(100, 0.2, 1.0, 0.6),
    ),
    same(
        "[M] figure 9; section 3.4, 0.5 to 0.8, of which [SV] has 0.7; figure 13",
        ("sundae_imagenet_sample",),
        stepping(50, 0.7, 1.0, 0.6),
    ),
)  # fmt: skip

# What [M] leaves open.
OURS = (
    same(
        "[SV]: head width, no dropout, no average",
        jobs(SUNDAE, "top"),
        {"model.head_width": 64, "model.dropout": 0, "model.polyak": 0},
    ),
    Table(
        "[SV]: learning rate, batch",
        jobs(SUNDAE, "top"),
        {
            "model.schedule": ("Constant",) * 4,
            "model.schedule.learning_rate": (3e-5, 5e-6, 3e-5, 1e-6),
            "data.batch_size": (32, 10, 48, 64),
        },
    ),
    Table(
        "100 epochs, plain and mirrored, of the faces; 25 of ImageNet, rounded",
        jobs(SUNDAE, "top"),
        {"trainer.max_steps": (100 * 120_000 // 32, 100 * 120_000 // 10, 100 * 60_000 // 48, 1_000_000)},
    ),
    same("[SV] at least so many steps", jobs(SUNDAE, "sample"), {"model.steps.0.min_steps": 10}),
    same(
        "[M] section 3.6: 0.3 to 0.5; the rest as FFHQ's samples",
        jobs(SUNDAE, "complete"),
        {**stepping(100, 0.2, 0.5, 0.3), "model.steps.0.min_steps": 10},
    ),
    same(
        "[T]",
        jobs(SUNDAE, "vqvae"),
        {
            **listed("model.betas", 0.5, 0.9),
            "model.polyak": 0,
            "model.beta": 0.25,
            "model.beta_on": "codebook",
            "model.codebook": "gradient",
            "model.norm_groups": 32,
            "model.latent_channels": 256,
            "model.adversarial.warmup": 0,
            "model.adversarial.lambda_max": 10_000,
            "model.discriminator.hidden": 64,
            "model.discriminator.norm": "batch",
            "model.discriminator.rate": 1,
        },
    ),
    same(
        "[T], as [SV] has its pretrained networks",
        jobs(SUNDAE_256, "vqvae"),
        {
            **listed("model.multipliers", 1, 1, 2, 2, 4),
            "model.residual_blocks": 2,
            **listed("model.attention_resolutions", 16),
            "model.resolution": 256,
            "model.adversarial.weight": 0.8,
        },
    ),
    Table(
        "[T]: batches before the discriminator counts, of faces and of ImageNet",
        jobs(SUNDAE_256, "vqvae"),
        {"model.adversarial.start": (30_001, 30_001, 250_001)},
    ),
    same("four devices with [T]'s batch of 3", jobs(SUNDAE_256, "vqvae"), {"data.batch_size": 12}),
    Table(
        "[T], [SV]: 4.5e-6 and 5e-6 for each image of a batch",
        jobs(SUNDAE, "vqvae"),
        {"model.schedule.learning_rate": (5.4e-5, 2e-5, 5.4e-5, 5.4e-5)},
    ),
    Table(
        "80, 20, 80 and 9 epochs, of ImageNet rounded",
        jobs(SUNDAE, "vqvae"),
        {"trainer.max_steps": (80 * 60_000 // 12, 20 * 60_000 // 4, 80 * 30_000 // 12, 1_000_000)},
    ),
    same("[S] A.1, [T]: random crops", ("sundae_imagenet_vqvae",), {"data.augment.random_crop": True}),
    same("mirrored, as the codes are", ("sundae_imagenet_vqvae",), {"data.augment.flip": True}),
    same(
        "held-out faces show overfitting",
        jobs(("sundae_celeba",), "vqvae", "encode", "eval"),
        {"data.holdout": 0.01},
    ),
    same("faces have no classes", jobs(SUNDAE_FACES, "vqvae"), {"data.num_classes": 0}),
    same("colour", jobs(SUNDAE, "vqvae"), {"data.channels": 3}),
    same("steps count, not epochs", SUNDAE_FITS, {"trainer.max_epochs": -1, "trainer.log_every_n_steps": 50}),
    same("how often we look", SUNDAE_FITS, {"trainer.val_check_interval": 5000}),
    same("loading", jobs(SUNDAE, "vqvae"), {"data.num_workers": 8}),
    same("loading", jobs(SUNDAE, "top"), {"data.num_workers": 4}),
    same("pictures of faces, as in ffhq", jobs(SUNDAE_FACES, "vqvae"), {"ReconstructionGrid.num_samples": 4}),
    same(
        "pictures of faces, as in ffhq",
        jobs(SUNDAE_FACES, "top"),
        {"SampleGrid.every_n_validations": 10, "SampleGrid.num_samples": 4},
    ),
    same("pictures of ImageNet", ("sundae_imagenet_top",), {"SampleGrid.every_n_validations": 5}),
    same("what fits one device", jobs(SUNDAE[:1], "encode", "sample", "eval"), {"data.batch_size": 64}),
    same("what fits one device", jobs(SUNDAE[1:2], "encode", "sample", "eval"), {"data.batch_size": 16}),
)  # fmt: skip

# [M] table 3: latent shape.
GRIDS = {
    "sundae_ffhq256_vqvae": ((16, 16),),
    "sundae_ffhq1024_vqvae": ((32, 32),),
    "sundae_celeba_vqvae": ((16, 16),),
    "sundae_imagenet_vqvae": ((16, 16),),
}
