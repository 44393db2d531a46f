"""[HR]: its comparisons with VQ-VAE-2, small_*, HR-VQVAE itself, hr_*, and what it leaves open of both."""

from tests.paper_numbers.table import Table, jobs, same
from tests.paper_numbers.vqvae2 import FACES_AUGMENTED

# The columns of tables 4 to 9, in their order.
SMALL = ("small_ffhq", "small_imagenet", "small_cifar10", "small_mnist")
HR = ("hr_ffhq", "hr_imagenet", "hr_cifar10", "hr_mnist")
BOTH = (*SMALL, *HR)

AUTOENCODERS = jobs(BOTH, "vqvae")
SMALL_PRIORS = jobs(SMALL, "top", "mid", "bottom")
HR_PRIORS = jobs(HR, "top", "path")
PRIORS = (*SMALL_PRIORS, *HR_PRIORS)
FITS = (*AUTOENCODERS, *PRIORS)
CONDITIONED = (*jobs(SMALL, "mid", "bottom"), *jobs(HR, "path"))

# The jobs whose config says what images are, less hr_*'s, which have all but the fit from small_*.
UNLABELLED = ("vqvae", "encode", "eval")
LABELLED = (*UNLABELLED, "classifier", "cas")


def fits_of(column: int) -> tuple[str, ...]:
    """Of one set of images: the fits of both autoencoders."""
    return jobs((SMALL[column], HR[column]), "vqvae")


def priors_of(column: int) -> tuple[str, ...]:
    """Of one set of images: all priors, of both autoencoders."""
    return (*jobs((SMALL[column],), "top", "mid", "bottom"), *jobs((HR[column],), "top", "path"))


def as_long_as_the_autoencoder(*batch_sizes: int) -> tuple[int, ...]:
    """Steps of priors, in as many epochs as the autoencoder's."""
    epochs, images = (400, 400, 999, 999), (70_000, 1_281_167, 50_000, 60_000)
    return tuple(e * i // b for e, i, b in zip(epochs, images, batch_sizes, strict=True))


PAPER = (
    Table(
        "table 5: batch size, training steps",
        AUTOENCODERS,
        {
            "data.batch_size": (32, 64, 128, 128) * 2,
            "trainer.max_steps": (875_000, 8_007_293, 390_234, 468_281) * 2,
        },
    ),
    same(
        "table 5: input size, 256x256x3",
        (HR[0] + "_vqvae", *jobs(SMALL[:1], *UNLABELLED)),
        {"data.image_size": 256, "data.channels": 3},
    ),
    same(
        "table 5: input size, 128x128x3",
        (HR[1] + "_vqvae", *jobs(SMALL[1:2], *LABELLED)),
        {"data.image_size": 128, "data.channels": 3},
    ),
    same(
        "table 5: input size, 32x32x3",
        (HR[2] + "_vqvae", *jobs(SMALL[2:3], *LABELLED)),
        {"data.image_size": 32, "data.channels": 3},
    ),
    same(
        "table 5: input size, 28x28x1, padded to 32x32 because tables 6 and 7 have a grid of 16x16",
        (HR[3] + "_vqvae", *jobs(SMALL[3:], *LABELLED)),
        {"data.image_size": 32, "data.channels": 1, "data.fit": "pad"},
    ),
    same(
        "tables 6 and 7: the same for all",
        AUTOENCODERS,
        {
            "model.beta": 0.25,
            "model.residual": 64,
            "model.polyak": 0.9,
            "model.schedule": "Constant",
            "model.schedule.learning_rate": 0.003,
        },
    ),
    Table(
        "tables 6 and 7",
        AUTOENCODERS,
        {
            "model.factor": (256 // 32, 128 // 32, 32 // 16, 32 // 16) * 2,  # table 5's input, latent layers
            "model.hidden": (128, 128, 64, 64) * 2,
            "model.code_dim": (32, 32, 16, 8) * 2,
        },
    ),
    same("table 7: layers (bottom, mid., top)", jobs(SMALL, "vqvae"), {"model.num_levels": 3}),
    same("table 6: layers", jobs(HR, "vqvae", "path"), {"model.depth": 3}),
    Table("table 7: codebook size", jobs(SMALL, "vqvae"), {"model.num_codes": (512, 512, 512, 64)}),
    Table("table 6: codebook size", jobs(HR, "vqvae"), {"model.branch": (8, 8, 8, 4)}),
    same("A.2, figure 10: linked codebooks", jobs(HR, "vqvae"), {"model.linked": True}),
    Table(
        "table 9: batch size, (top, mid, bottom)",
        SMALL_PRIORS,
        {"data.batch_size": (128, 256, 512, 512, 64, 128, 512, 512, 32, 64, 512, 512)},
    ),
    Table("table 8: batch size", HR_PRIORS, {"data.batch_size": (32, 128, 512, 512) * 2}),
    Table("tables 8 and 9: hidden units", PRIORS, {"model.hidden": (128, 128, 64, 64) * 5}),
    Table("table 9: residual units", SMALL_PRIORS, {"model.residual": (64, 128, 64, 64) * 3}),
    same("table 8: residual units", HR_PRIORS, {"model.residual": 64}),
    same(
        "tables 8 and 9: the same for all",
        PRIORS,
        {"model.kernel": 5, "model.output_layers": 0, "model.polyak": 0.99},
    ),
    same(
        "table 8; table 9, top",
        (*jobs(SMALL, "top"), *HR_PRIORS),
        {"model.attention_layers": 4, "model.heads": 8},
    ),
    same("table 9: mid", jobs(SMALL, "mid"), {"model.attention_layers": 1}),
    same("table 9: bottom", jobs(SMALL, "bottom"), {"model.attention_layers": 0}),
    Table(
        "table 9: dropout, (top, mid, bottom)",
        SMALL_PRIORS,
        {"model.dropout": (0.5,) * 4 + (0.3,) * 4 + (0.25,) * 4},
    ),
    Table("table 8: dropout", HR_PRIORS, {"model.dropout": (0.15, 0.15, 0.1, 0.1) * 2}),
)  # fmt: skip

OURS = (
    same(
        "as in VQ-VAE-2: [S] table 3, [P] section 2.1, [SN]",
        AUTOENCODERS,
        {"model.residual_blocks": 2, "model.decay": 0.99, "model.eps": 1e-5},
    ),
    same("a start nearer to the images", AUTOENCODERS, {"model.codebook_init": "data"}),
    same(
        "nothing else that is not in VQ-VAE-2",
        jobs(SMALL, "vqvae"),
        {"model.revive_below": 0, "model.level_dropout": 0},
    ),
    same(
        "children start from vectors of their own cell; residuals without the codes' gradient",
        jobs(HR, "vqvae"),
        {"model.residual_gradient": "stop", "model.revive_below": 0.02},
    ),
    same(
        "as in VQ-VAE-2: [S] table 1, A.2",
        PRIORS,
        {
            "model.layers": 20,
            "model.attention_dropout": "logits",
            "model.schedule": "InverseSquareRoot",
            "model.schedule.warmup": 16_000,
            "model.schedule.power": 0.5,
        },
    ),
    same(
        "as in VQ-VAE-2: [S] A.2, FFHQ top and mid",
        (*jobs(SMALL, "top", "mid"), *HR_PRIORS),
        {"model.schedule.scale": 0.324},
    ),
    same("as in VQ-VAE-2: [S] A.2, FFHQ bottom", jobs(SMALL, "bottom"), {"model.schedule.scale": 0.18}),
    same("table 9 has a dash for the heads: as the top prior", jobs(SMALL, "mid"), {"model.heads": 8}),
    same("table 9 has a dash for the heads: none", jobs(SMALL, "bottom"), {"model.heads": 0}),
    Table(
        "as in VQ-VAE-2: twice the hidden units",
        CONDITIONED,
        {"model.conditioning_hidden": (256, 256, 128, 128) * 3},
    ),
    same("as in VQ-VAE-2: [S] table 2", CONDITIONED, {"model.conditioning_blocks": 8}),
    Table(
        "as many epochs as the autoencoder: 400, 400, 999, 999",
        PRIORS,
        {
            "trainer.max_steps": (
                *as_long_as_the_autoencoder(128, 256, 512, 512),
                *as_long_as_the_autoencoder(64, 128, 512, 512),
                *as_long_as_the_autoencoder(32, 64, 512, 512),
                *as_long_as_the_autoencoder(32, 128, 512, 512) * 2,
            )
        },
    ),
    same("steps count, not epochs", FITS, {"trainer.max_epochs": -1, "trainer.log_every_n_steps": 50}),
    same("how often we look", FITS, {"trainer.val_check_interval": 5000}),
    Table(
        "mirrored pictures are pictures, [S] A.1; mirrored digits are none",
        AUTOENCODERS,
        {"data.augment.flip": (True, True, True, False) * 2},
    ),
    same(
        "mirrored digits are none",
        jobs(SMALL[3:], "encode", "eval", "classifier", "cas"),
        {"data.augment.flip": False},
    ),
    same("mirrored digits are none", ("small_mnist_encode",), {"data.encode_flips": False}),
    same("as wide as the pad", jobs(SMALL[3:], "classifier", "cas"), {"data.augment.shift": 2}),
    same("as in VQ-VAE-2: [S] A.1", fits_of(0), FACES_AUGMENTED),
    same("as in VQ-VAE-2: [S] A.1", fits_of(1), {"data.augment.random_crop": True}),
    same("held-out faces show overfitting", fits_of(0), {"data.holdout": 0.01}),
    same("folders of FFHQ are no classes", fits_of(0), {"data.num_classes": 0}),
    same(
        "CIFAR-10 and MNIST have ten; images of 32x32 fit the memory",
        (*fits_of(2), *fits_of(3)),
        {"data.num_classes": 10, "data.cache": True},
    ),
    Table("loading", AUTOENCODERS, {"data.num_workers": (8, 8, 1, 1) * 2}),
    same("loading", (*priors_of(0), *priors_of(1)), {"data.num_workers": 4}),
    same("pictures of ImageNet", priors_of(1), {"SampleGrid.every_n_validations": 5}),
    same(
        "pictures of faces, as in ffhq",
        priors_of(0),
        {"SampleGrid.every_n_validations": 10, "SampleGrid.num_samples": 4},
    ),
    same("pictures of faces, as in ffhq", fits_of(0), {"ReconstructionGrid.num_samples": 4}),
    same("what fits one device", jobs(SMALL[:1], "sample", "eval"), {"data.batch_size": 64}),
)  # fmt: skip

GRIDS = {
    # table 7: latent layers
    "small_ffhq_vqvae": ((8, 8), (16, 16), (32, 32)),
    "small_imagenet_vqvae": ((8, 8), (16, 16), (32, 32)),
    "small_cifar10_vqvae": ((4, 4), (8, 8), (16, 16)),
    "small_mnist_vqvae": ((4, 4), (8, 8), (16, 16)),
    # table 6: latent layers
    "hr_ffhq_vqvae": ((32, 32),),
    "hr_imagenet_vqvae": ((32, 32),),
    "hr_cifar10_vqvae": ((16, 16),),
    "hr_mnist_vqvae": ((16, 16),),
}
