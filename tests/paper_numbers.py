"""The papers' numbers, table by table, and those numbers of the paper-size configs that are ours.

Copied from the papers, not from the configs: `test_paper_numbers.py` holds the configs against this page, and
`experiments/paper.py` and the README's column too. A new number in such a config needs a row here. What a
recipe has from the one that it is made from needs none, except in the fits of autoencoders and priors.

Sources: [P] Razavi, van den Oord, Vinyals, "Generating Diverse High-Fidelity Images with VQ-VAE-2", 2019;
[S] its supplement; [SN] the Sonnet code that it links; [CAS] Ravuri and Vinyals, 2019; [HR] Adiban, Stefanov,
Siniscalchi, Salvi, "Hierarchical Residual Learning Based Vector Quantized Variational Autoencoder for Image
Reconstruction and Generation", 2022; [M] McKinney and Willcocks, "Megapixel Image Generation with
Step-Unrolled Denoising Autoencoders", 2022; [SV] their code, github.com/vvvm23/sundae-vqgan; [T] the code of
Esser, Rombach and Ommer, "Taming Transformers for High-Resolution Image Synthesis", 2021; the others by name.
"""

from typing import NamedTuple

NONE = None  # the papers' tables have a dash, or say nothing: the config has no such option


class Table(NamedTuple):
    """Options by their dotted names, without `init_args`; a value for each of the configs."""

    source: str
    configs: tuple[str, ...]
    rows: dict[str, tuple]


def jobs(recipes: tuple[str, ...], *names: str) -> tuple[str, ...]:
    """The configs of some jobs: of each job all recipes, in their order."""
    return tuple(f"{recipe}_{name}" for name in names for recipe in recipes)


ALL_PRIORS = ("imagenet_top", "imagenet_bottom", "ffhq_top", "ffhq_mid", "ffhq_bottom")
ALL_AUTOENCODERS = ("imagenet_vqvae", "ffhq_vqvae")
CLASSIFIERS = ("imagenet_classifier", "imagenet_cas")
IMAGENET_IMAGES = ("imagenet_vqvae", "imagenet_encode", "imagenet_eval", *CLASSIFIERS)
FFHQ_IMAGES = ("ffhq_vqvae", "ffhq_encode", "ffhq_eval")
ALL_FITS = (*ALL_AUTOENCODERS, *ALL_PRIORS, *CLASSIFIERS)
ALL_EVALS = ("imagenet_eval", "ffhq_eval")

# The columns of [HR] tables 4 to 9, in their order, as VQ-VAE-2.
SMALL = ("small_ffhq", "small_imagenet", "small_cifar10", "small_mnist")
SMALL_32 = jobs(SMALL[2:], "vqvae")
SMALL_PRIORS = jobs(SMALL, "top", "mid", "bottom")
SMALL_FITS = (*jobs(SMALL, "vqvae"), *SMALL_PRIORS)

# The same columns as HR-VQVAE.
HR = ("hr_ffhq", "hr_imagenet", "hr_cifar10", "hr_mnist")
HR_PRIORS = jobs(HR, "top", "path")
HR_FITS = (*jobs(HR, "vqvae"), *HR_PRIORS)

# The columns of [M] table 3.
SUNDAE = ("sundae_ffhq256", "sundae_ffhq1024", "sundae_celeba", "sundae_imagenet")
SUNDAE_256 = (SUNDAE[0], *SUNDAE[2:])
SUNDAE_FACES = SUNDAE[:3]
SUNDAE_FITS = jobs(SUNDAE, "vqvae", "top")
SUNDAE_GREY = ("sundae_mnist", "sundae_fashion_mnist")


def same(source: str, configs: tuple[str, ...], rows: dict) -> Table:
    """A table whose configs all have the same values."""
    return Table(source, configs, {name: (value,) * len(configs) for name, value in rows.items()})


def listed(name: str, *values: object) -> dict[str, object]:
    """The rows of an option that is a list."""
    return {f"{name}.{i}": value for i, value in enumerate(values)}


def stepping(steps: int, proportion: float, *temperature: float) -> dict[str, object]:
    """The rows of a sampler's steps."""
    return {
        "model.steps.0.steps": steps,
        **listed("model.steps.0.proportion", proportion, proportion),
        **listed("model.steps.0.temperature", *temperature),
    }


PAPERS = (
    Table(
        "[S] table 1: hyper parameters of the priors of ImageNet-256",
        ("imagenet_top", "imagenet_bottom"),
        {
            "data.batch_size": (1024, 512),  # Batch size
            "model.hidden": (512, 512),  # Hidden units
            "model.residual": (2048, 1024),  # Residual units
            "model.layers": (20, 20),  # Layers
            "model.attention_layers": (4, 0),  # Attention layers
            "model.heads": (8, NONE),  # Attention heads
            "model.kernel": (5, 5),  # Conv Filter size
            "model.dropout": (0.1, 0.1),  # Dropout
            "model.conditioning_blocks": (NONE, 20),  # Conditioning stack residual blocks
            "trainer.max_steps": (1_600_000, 754_000),  # Training steps
            "model.polyak": (0.9999, 0.9999),  # Polyak EMA decay
        },
    ),
    same("[S] table 1: output stack layers", ("imagenet_top",), {"model.output_layers": 20}),
    Table(
        "[S] table 2: hyper parameters of the priors of FFHQ-1024",
        ("ffhq_top", "ffhq_mid", "ffhq_bottom"),
        {
            "data.batch_size": (1024, 512, 256),
            "model.hidden": (512, 512, 512),
            "model.residual": (2048, 1024, 1024),
            "model.layers": (20, 20, 10),
            "model.attention_layers": (4, 1, 0),
            "model.kernel": (5, 5, 5),
            "model.dropout": (0.5, 0.3, 0.25),
            "model.output_layers": (0, 0, 0),
            "model.conditioning_blocks": (NONE, 8, 8),
            "trainer.max_steps": (237_000, 57_400, 270_000),
            "model.polyak": (0.9999, 0.9999, 0.9999),
        },
    ),
    same("[S] table 2: attention heads", ("ffhq_top",), {"model.heads": 8}),
    same(
        "[S] A.2: learning rate formulae, min(step^-0.5, step 16000^-1.5); the scan garbles the power",
        ALL_PRIORS,
        {
            "model.schedule": "InverseSquareRoot",
            "model.schedule.warmup": 16_000,
            "model.schedule.power": 0.5,
        },
    ),
    Table(
        "[S] A.2: the formulae's factors of ImageNet top and bottom, FFHQ top, mid and bottom",
        ALL_PRIORS,
        {"model.schedule.scale": (0.18, 0.18, 0.324, 0.324, 0.18)},
    ),
    same(
        "[S] A.2: pseudo code of the conditioning stack, Conv2D(1024, ...)",
        ("imagenet_bottom", "ffhq_mid", "ffhq_bottom"),
        {"model.conditioning_hidden": 1024},
    ),
    same("[S] A.2: dropout on the logits of attention", ALL_PRIORS, {"model.attention_dropout": "logits"}),
    same(
        "[S] table 3: hyper parameters of the encoder and decoder",
        ALL_AUTOENCODERS,
        {
            "model.beta": 0.25,  # commitment loss coefficient
            "data.batch_size": 128,
            "model.hidden": 128,
            "model.residual": 64,
            "model.residual_blocks": 2,  # Layers
            "model.num_codes": 512,
            "model.code_dim": 64,
            "model.polyak": 0.9999,
            "model.schedule": "Constant",
            "model.schedule.learning_rate": 0.0002,
        },
    ),
    Table(
        "[S] table 3: training steps, and latent layers",
        ALL_AUTOENCODERS,
        {
            "trainer.max_steps": (2_207_444, 304_741),
            "model.num_levels": (2, 3),
            "model.factor": (256 // 64, 1024 // 128),
        },
    ),
    same("[P] section 2.1: gamma", ALL_AUTOENCODERS, {"model.decay": 0.99}),
    same("[SN] defaults", ALL_AUTOENCODERS, {"model.eps": 1e-5, "model.codebook_init": "normal"}),
    same("[S] table 3: input size", IMAGENET_IMAGES, {"data.image_size": 256}),
    same("[S] table 3: input size", FFHQ_IMAGES, {"data.image_size": 1024}),
    same(
        "[S] A.1: random cropping and flipping for ImageNet",
        IMAGENET_IMAGES,
        {"data.augment.random_crop": True, "data.augment.flip": True},
    ),
    same(
        "[S] A.1: for FFHQ additionally brightness, hue, saturation and contrast, and noise half of the time",
        FFHQ_IMAGES,
        {
            "data.augment.flip": True,
            "data.augment.brightness": 0.08,
            "data.augment.hue": 0.02,
            "data.augment.saturation": 0.1,
            "data.augment.contrast": 0.1,
            "data.augment.noise_probability": 0.5,
            "data.augment.noise_std": 0.02,
        },
    ),
    same("Salimans et al., 2016", ALL_EVALS, {"model.splits": 10}),
    same("torch-fidelity 0.4: KID", ALL_EVALS, {"model.kid.subsets": 100, "model.kid.subset_size": 1000}),
    same(
        "Chong and Forsyth, 2020: 15 points from 5,000 to 50,000",
        ALL_EVALS,
        {
            "model.fid_infinity.points": 15,
            "model.fid_infinity.smallest": 5000,
            "model.fid_infinity.largest": 50_000,
        },
    ),
    same(
        "Kynkäänniemi et al., 2019: k = 3, 50,000 images of each side",
        ALL_EVALS,
        {"model.manifold.k_precision": 3, "model.max_features": 50_000},
    ),
    same("Naeem et al., 2020: k = 5", ALL_EVALS, {"model.manifold.k_density": 5}),
    same("[P] section 5.3, [CAS]: a ResNet-50", CLASSIFIERS, {"model.architecture": "resnet50"}),
    same(
        "He et al., 2016, section 3.4",
        CLASSIFIERS,
        {"data.batch_size": 256, "model.momentum": 0.9, "model.weight_decay": 1e-4, "model.optimizer": "sgd"},
    ),
    same(
        "Goyal et al., 2017: 0.1 for a batch of 256, 5 of 90 epochs of warm-up; He et al., 2019: a cosine",
        CLASSIFIERS,
        {
            "model.schedule": "Cosine",
            "model.schedule.learning_rate": 0.1,
            "model.schedule.warmup": 5 * (IMAGENET_EPOCH := -(-1_281_167 // 256)),
            "trainer.max_steps": 90 * IMAGENET_EPOCH,
        },
    ),
)  # fmt: skip

# [HR] what its comparisons with VQ-VAE-2 say. (Those of HR-VQVAE itself follow.)
SMALL_VQVAE_2 = (
    Table(
        "[HR] table 5: batch size, training steps",
        jobs(SMALL, "vqvae"),
        {
            "data.batch_size": (32, 64, 128, 128),
            "trainer.max_steps": (875_000, 8_007_293, 390_234, 468_281),
        },
    ),
    same(
        "[HR] table 5: input size, 256x256x3",
        jobs(("small_ffhq",), "vqvae", "encode", "eval"),
        {"data.image_size": 256, "data.channels": 3},
    ),
    same(
        "[HR] table 5: input size, 128x128x3",
        jobs(("small_imagenet",), "vqvae", "encode", "eval", "classifier", "cas"),
        {"data.image_size": 128, "data.channels": 3},
    ),
    same(
        "[HR] table 5: input size, 32x32x3",
        jobs(("small_cifar10",), "vqvae", "encode", "eval", "classifier", "cas"),
        {"data.image_size": 32, "data.channels": 3},
    ),
    same(
        "[HR] table 5: input size, 28x28x1, padded to 32x32 because table 7 has a grid of 16x16",
        jobs(("small_mnist",), "vqvae", "encode", "eval", "classifier", "cas"),
        {"data.image_size": 32, "data.channels": 1, "data.fit": "pad"},
    ),
    same(
        "[HR] table 7: hyper parameters of VQ-VAE-2, the same for all",
        jobs(SMALL, "vqvae"),
        {
            "model.num_levels": 3,  # Layers (Bottom, Mid., Top)
            "model.beta": 0.25,
            "model.residual": 64,
            "model.polyak": 0.9,
            "model.schedule": "Constant",
            "model.schedule.learning_rate": 0.003,
        },
    ),
    Table(
        "[HR] table 7: hyper parameters of VQ-VAE-2",
        jobs(SMALL, "vqvae"),
        {
            "model.factor": (256 // 32, 128 // 32, 32 // 16, 32 // 16),  # table 5's input, latent layers
            "model.hidden": (128, 128, 64, 64),
            "model.num_codes": (512, 512, 512, 64),  # Codebook size
            "model.code_dim": (32, 32, 16, 8),
        },
    ),
    Table(
        "[HR] table 9: batch size, (top, mid, bottom)",
        SMALL_PRIORS,
        {"data.batch_size": (128, 256, 512, 512, 64, 128, 512, 512, 32, 64, 512, 512)},
    ),
    Table(
        "[HR] table 9: hidden units, residual units",
        SMALL_PRIORS,
        {"model.hidden": (128, 128, 64, 64) * 3, "model.residual": (64, 128, 64, 64) * 3},
    ),
    same(
        "[HR] table 9: the same for all",
        SMALL_PRIORS,
        {"model.kernel": 5, "model.output_layers": 0, "model.polyak": 0.99},
    ),
    same(
        "[HR] table 9: top",
        jobs(SMALL, "top"),
        {"model.attention_layers": 4, "model.heads": 8, "model.dropout": 0.5},
    ),
    same("[HR] table 9: mid", jobs(SMALL, "mid"), {"model.attention_layers": 1, "model.dropout": 0.3}),
    same(
        "[HR] table 9: bottom",
        jobs(SMALL, "bottom"),
        {"model.attention_layers": 0, "model.dropout": 0.25},
    ),
)  # fmt: skip

# [HR] what it says of HR-VQVAE itself; what is not in a fit is as in small_*.
HR_VQVAE = (
    Table(
        "[HR] table 5: batch size, training steps, input size",
        jobs(HR, "vqvae"),
        {
            "data.batch_size": (32, 64, 128, 128),
            "trainer.max_steps": (875_000, 8_007_293, 390_234, 468_281),
            "data.image_size": (256, 128, 32, 32),  # MNIST's 28 padded, because table 6 has a grid of 16x16
            "data.channels": (3, 3, 3, 1),
        },
    ),
    same(
        "[HR] table 6: hyper parameters of HR-VQVAE, the same for all",
        jobs(HR, "vqvae"),
        {
            "model.depth": 3,  # Layers
            "model.beta": 0.25,
            "model.residual": 64,
            "model.polyak": 0.9,
            "model.schedule": "Constant",
            "model.schedule.learning_rate": 0.003,
        },
    ),
    Table(
        "[HR] table 6: hyper parameters of HR-VQVAE",
        jobs(HR, "vqvae"),
        {
            "model.factor": (256 // 32, 128 // 32, 32 // 16, 32 // 16),  # table 5's input, latent layers
            "model.hidden": (128, 128, 64, 64),
            "model.branch": (8, 8, 8, 4),  # Codebook size
            "model.code_dim": (32, 32, 16, 8),
        },
    ),
    same("[HR] A.2, figure 10: linked codebooks", jobs(HR, "vqvae"), {"model.linked": True}),
    same("[HR] table 6: Layers", jobs(HR, "path"), {"model.depth": 3}),
    Table(
        "[HR] table 8: batch size, hidden units, dropout",
        HR_PRIORS,
        {
            "data.batch_size": (32, 128, 512, 512) * 2,
            "model.hidden": (128, 128, 64, 64) * 2,
            "model.dropout": (0.15, 0.15, 0.1, 0.1) * 2,
        },
    ),
    same(
        "[HR] table 8: the same for all",
        HR_PRIORS,
        {
            "model.residual": 64,
            "model.attention_layers": 4,
            "model.heads": 8,
            "model.kernel": 5,
            "model.output_layers": 0,
            "model.polyak": 0.99,
        },
    ),
)  # fmt: skip

# What [HR] leaves open in its comparisons.
SMALL_OURS = (
    same(
        "as in VQ-VAE-2: [S] table 3, [P] section 2.1, [SN]",
        jobs(SMALL, "vqvae"),
        {"model.residual_blocks": 2, "model.decay": 0.99, "model.eps": 1e-5},
    ),
    same(
        "a start nearer to the images; nothing else that is not in VQ-VAE-2",
        jobs(SMALL, "vqvae"),
        {"model.codebook_init": "data", "model.revive_below": 0, "model.level_dropout": 0},
    ),
    same(
        "as in VQ-VAE-2: [S] table 1, A.2",
        SMALL_PRIORS,
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
        jobs(SMALL, "top", "mid"),
        {"model.schedule.scale": 0.324},
    ),
    same("as in VQ-VAE-2: [S] A.2, FFHQ bottom", jobs(SMALL, "bottom"), {"model.schedule.scale": 0.18}),
    same("[HR] table 9 has a dash for the heads: as the top prior", jobs(SMALL, "mid"), {"model.heads": 8}),
    same("[HR] table 9 has a dash for the heads: none", jobs(SMALL, "bottom"), {"model.heads": 0}),
    Table(
        "as in VQ-VAE-2: twice the hidden units",
        jobs(SMALL, "mid", "bottom"),
        {"model.conditioning_hidden": (256, 256, 128, 128) * 2},
    ),
    same("as in VQ-VAE-2: [S] table 2", jobs(SMALL, "mid", "bottom"), {"model.conditioning_blocks": 8}),
    Table(
        "as many epochs as the autoencoder: 400, 400, 999, 999",
        SMALL_PRIORS,
        {
            "trainer.max_steps": tuple(
                epochs * images // batch
                for batches in ((128, 256, 512, 512), (64, 128, 512, 512), (32, 64, 512, 512))
                for epochs, images, batch in zip(
                    (400, 400, 999, 999), (70_000, 1_281_167, 50_000, 60_000), batches, strict=True
                )
            )
        },
    ),
    same("steps count, not epochs", SMALL_FITS, {"trainer.max_epochs": -1, "trainer.log_every_n_steps": 50}),
    same(
        "how often we look",
        SMALL_FITS,
        {"trainer.val_check_interval": 5000},
    ),
    same(
        "as in VQ-VAE-2: [S] A.1",
        ("small_imagenet_vqvae",),
        {"data.augment.random_crop": True, "data.augment.flip": True},
    ),
    same(
        "as in VQ-VAE-2: [S] A.1",
        ("small_ffhq_vqvae",),
        {
            "data.augment.flip": True,
            "data.augment.brightness": 0.08,
            "data.augment.hue": 0.02,
            "data.augment.saturation": 0.1,
            "data.augment.contrast": 0.1,
            "data.augment.noise_probability": 0.5,
            "data.augment.noise_std": 0.02,
        },
    ),
    same("mirrored pictures are pictures", ("small_cifar10_vqvae",), {"data.augment.flip": True}),
    same(
        "mirrored digits are none",
        jobs(("small_mnist",), "vqvae", "encode", "eval", "classifier", "cas"),
        {"data.augment.flip": False},
    ),
    same("mirrored digits are none", ("small_mnist_encode",), {"data.encode_flips": False}),
    same("as wide as the pad", jobs(("small_mnist",), "classifier", "cas"), {"data.augment.shift": 2}),
    same("held-out faces show overfitting", ("small_ffhq_vqvae",), {"data.holdout": 0.01}),
    Table(
        "folders of FFHQ are no classes; CIFAR-10 and MNIST have ten",
        ("small_ffhq_vqvae", *SMALL_32),
        {"data.num_classes": (0, 10, 10)},
    ),
    same("images of 32x32 fit the memory", SMALL_32, {"data.cache": True}),
    Table("loading", jobs(SMALL, "vqvae"), {"data.num_workers": (8, 8, 1, 1)}),
    same("loading", jobs(SMALL[:2], "top", "mid", "bottom"), {"data.num_workers": 4}),
    same(
        "pictures of ImageNet",
        jobs(("small_imagenet",), "top", "mid", "bottom"),
        {"SampleGrid.every_n_validations": 5},
    ),
    same(
        "pictures of faces, as in ffhq",
        jobs(("small_ffhq",), "top", "mid", "bottom"),
        {"SampleGrid.every_n_validations": 10, "SampleGrid.num_samples": 4},
    ),
    same("pictures of faces, as in ffhq", ("small_ffhq_vqvae",), {"ReconstructionGrid.num_samples": 4}),
    same("what fits one device", jobs(("small_ffhq",), "sample", "eval"), {"data.batch_size": 64}),
)  # fmt: skip

# What [HR] leaves open of HR-VQVAE.
HR_OURS = (
    same(
        "as in VQ-VAE-2: [S] table 3, [P] section 2.1, [SN]",
        jobs(HR, "vqvae"),
        {"model.residual_blocks": 2, "model.decay": 0.99, "model.eps": 1e-5},
    ),
    same(
        "children start from vectors of their own cell; residuals without the codes' gradient",
        jobs(HR, "vqvae"),
        {"model.codebook_init": "data", "model.residual_gradient": "stop", "model.revive_below": 0.02},
    ),
    same(
        "as in VQ-VAE-2: [S] table 1, A.2, FFHQ top and mid",
        HR_PRIORS,
        {
            "model.layers": 20,
            "model.attention_dropout": "logits",
            "model.schedule": "InverseSquareRoot",
            "model.schedule.warmup": 16_000,
            "model.schedule.power": 0.5,
            "model.schedule.scale": 0.324,
        },
    ),
    Table(
        "as in VQ-VAE-2: twice the hidden units",
        jobs(HR, "path"),
        {"model.conditioning_hidden": (256, 256, 128, 128)},
    ),
    same("as in VQ-VAE-2: [S] table 2", jobs(HR, "path"), {"model.conditioning_blocks": 8}),
    Table(
        "as many epochs as the autoencoder: 400, 400, 999, 999",
        HR_PRIORS,
        {
            "trainer.max_steps": 2 * tuple(
                epochs * images // batch
                for epochs, images, batch in zip(
                    (400, 400, 999, 999),
                    (70_000, 1_281_167, 50_000, 60_000),
                    (32, 128, 512, 512),
                    strict=True,
                )
            )
        },
    ),
    same("steps count, not epochs", HR_FITS, {"trainer.max_epochs": -1, "trainer.log_every_n_steps": 50}),
    same("how often we look", HR_FITS, {"trainer.val_check_interval": 5000}),
    same(
        "as in small_*",
        jobs(HR[:1], "vqvae"),
        {
            "ReconstructionGrid.num_samples": 4,
            "data.holdout": 0.01,
            "data.num_classes": 0,
            "data.augment.brightness": 0.08,
            "data.augment.hue": 0.02,
            "data.augment.saturation": 0.1,
            "data.augment.contrast": 0.1,
            "data.augment.noise_probability": 0.5,
            "data.augment.noise_std": 0.02,
        },
    ),
    same("as in small_*", jobs(HR[1:2], "vqvae"), {"data.augment.random_crop": True}),
    same("as in small_*", jobs(HR[2:], "vqvae"), {"data.num_classes": 10, "data.cache": True}),
    Table(
        "as in small_*",
        jobs(HR, "vqvae"),
        {"data.augment.flip": (True, True, True, False), "data.num_workers": (8, 8, 1, 1)},
    ),
    same("loading", jobs(HR[:2], "top", "path"), {"data.num_workers": 4}),
    same("pictures of ImageNet", jobs(HR[1:2], "top", "path"), {"SampleGrid.every_n_validations": 5}),
    same(
        "pictures of faces, as in ffhq",
        jobs(HR[:1], "top", "path"),
        {"SampleGrid.every_n_validations": 10, "SampleGrid.num_samples": 4},
    ),
)  # fmt: skip

# [M] what it says.
SUNDAE_ON_VQ_GAN = (
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
SUNDAE_OURS = (
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

# [M] section 4.2: the grey values of pixels are the codes, and there is no autoencoder.
SUNDAE_ON_PIXELS = (
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
SUNDAE_CIFAR = (
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

# Numbers that no paper gives, each with its reason.
OURS = (
    same("[S] table 1 has a dash: no output stack", ("imagenet_bottom",), {"model.output_layers": 0}),
    same("[S] table 2 has a dash for the heads: as the top prior", ("ffhq_mid",), {"model.heads": 8}),
    same("averaged as the paper's other networks are", CLASSIFIERS, {"model.polyak": 0.9999}),
    same("held-out faces show overfitting", FFHQ_IMAGES, {"data.holdout": 0.01}),
    same("folders of FFHQ are no classes", FFHQ_IMAGES, {"data.num_classes": 0}),
    same("faces fill the frame: no crop", FFHQ_IMAGES, {"data.augment.random_crop": NONE}),
    same("colour", (*IMAGENET_IMAGES, *FFHQ_IMAGES), {"data.channels": 3}),
    same("steps count, not epochs", ALL_FITS, {"trainer.max_epochs": -1, "trainer.log_every_n_steps": 50}),
    same("how often we look", ALL_PRIORS, {"trainer.val_check_interval": 5000}),
    Table("how often we look", ALL_AUTOENCODERS, {"trainer.val_check_interval": (10_000, 5000)}),
    same("once an epoch", CLASSIFIERS, {"trainer.val_check_interval": IMAGENET_EPOCH}),
    same("pictures of ImageNet", ("imagenet_top", "imagenet_bottom"), {"SampleGrid.every_n_validations": 5}),
    same(
        "pictures of faces are large",
        ("ffhq_top", "ffhq_mid", "ffhq_bottom"),
        {"SampleGrid.every_n_validations": 10, "SampleGrid.num_samples": 4},
    ),
    same("pictures of faces are large", ("ffhq_vqvae",), {"ReconstructionGrid.num_samples": 4}),
    Table(
        "pictures of faces are large",
        ("ffhq_sample", "ffhq_complete"),
        {"SampleWriter.grid_columns": (4, 6), "SampleWriter.grid_rows": (4, 4)},
    ),
    same("loading", ALL_PRIORS, {"data.num_workers": 4}),
    same("loading", CLASSIFIERS, {"data.num_workers": 16}),
    same(
        "loading",
        (*ALL_AUTOENCODERS, *ALL_EVALS, "imagenet_encode", "ffhq_encode"),
        {"data.num_workers": 8},
    ),
    Table(
        "what fits one device",
        ("imagenet_encode", "ffhq_encode", *ALL_EVALS, "imagenet_sample", "ffhq_sample"),
        {"data.batch_size": (256, 32, 64, 16, 64, 16)},
    ),
    same("what fits one device", ("imagenet_complete", "ffhq_complete"), {"data.batch_size": 16}),
    Table(
        "what a restart repeats at most",
        ("ffhq_encode", "ffhq_sample", "ffhq_complete"),
        {"data.chunk_size": (1024, 256, 256)},
    ),
    same("[P] does not say what its priors saw", ("imagenet_encode",), {"data.encode_flips": True}),
    same(
        "[P] does not say what its priors saw",
        ("ffhq_encode",),
        {"data.encode_flips": True, "data.encode_views": 2},
    ),
    Table(
        "50,000 samples, as FID-50k wants them (Heusel et al., 2017)",
        ("imagenet_sample", "ffhq_sample"),
        {"data.per_class": (50_000 // 1000, 50_000)},
    ),
    Table(
        "pictures: the upper half is kept",
        ("imagenet_complete", "ffhq_complete"),
        {"data.num_prompts": (10, 4), "data.per_prompt": (8, 4), "data.rows": (0.5, 0.5)},
    ),
    same("pictures, as [S] figures 2 and 3", ALL_EVALS, {"model.queries": 10, "model.nearest": 8}),
)  # fmt: skip

TABLES = (
    *(*PAPERS, *SMALL_VQVAE_2, *HR_VQVAE, *SUNDAE_ON_VQ_GAN),
    *(*OURS, *SMALL_OURS, *HR_OURS, *SUNDAE_OURS, *SUNDAE_ON_PIXELS, *SUNDAE_CIFAR),
)

# [S] tables 1 to 3: input size of the priors, latent layers of the autoencoders; top first.
GRIDS = {
    "imagenet_vqvae": ((32, 32), (64, 64)),
    "ffhq_vqvae": ((32, 32), (64, 64), (128, 128)),
    # [HR] table 7: latent layers
    "small_ffhq_vqvae": ((8, 8), (16, 16), (32, 32)),
    "small_imagenet_vqvae": ((8, 8), (16, 16), (32, 32)),
    "small_cifar10_vqvae": ((4, 4), (8, 8), (16, 16)),
    "small_mnist_vqvae": ((4, 4), (8, 8), (16, 16)),
    # [HR] table 6: latent layers
    "hr_ffhq_vqvae": ((32, 32),),
    "hr_imagenet_vqvae": ((32, 32),),
    "hr_cifar10_vqvae": ((16, 16),),
    "hr_mnist_vqvae": ((16, 16),),
    # [M] table 3: latent shape
    "sundae_ffhq256_vqvae": ((16, 16),),
    "sundae_ffhq1024_vqvae": ((32, 32),),
    "sundae_celeba_vqvae": ((16, 16),),
    "sundae_imagenet_vqvae": ((16, 16),),
    "sundae_mnist_vqvae": ((28, 28),),
    "sundae_fashion_mnist_vqvae": ((28, 28),),
}

# What the papers report: numbers by table of `experiments/paper.py` and the names of its rows.
RESULTS = {
    "TABLE_1": {  # [P] table 1: train, validation
        "nll_top, NLL top": (3.40, 3.41),
        "nll_bottom, NLL bottom": (3.45, 3.45),
        "mse, MSE": (0.0047, 0.0050),
    },
    "TABLE_2": {  # [P] table 2: top-1, top-5
        "BigGAN-deep, real": (42.65, 65.92),
        "VQ-VAE-2, real": (54.83, 77.59),
        "VQ-VAE-2, reconstructed": (58.74, 80.98),
        "real data, real": (73.09, 91.47),
    },
    "FIGURE_7": {  # [P] section 5.3.1, "from roughly ~30 to ~10", "~10 instead of ~2"
        "samples, all, fid": (30.0,),
        "samples, the critic's best, fid": (10.0,),
        "reconstructions, fid": (10.0,),
        "originals, fid": (2.0,),
    },
    "CAS_PAPER": {  # read on a web page about [CAS]
        "VQ-VAE-2, is": (43.44,),
        "VQ-VAE-2, fid": (38.05,),
        "real data, is": (331.83,),
        "real data, fid": (2.47,),
    },
    "SUPPLEMENT_TABLE_5": {  # [S] table 5: PSNR in dB, bits an image
        "autoencoder, 8 dimensions": (32.41, 36_933),
        "autoencoder, 16 dimensions": (37.33, 62_047),
        "autoencoder, 32 dimensions": (45.92, 115_231),
        "autoencoder, 64 dimensions": (49.80, 196_484),
        "VQ-VAE, 512 codes": (27.19, 4919),
    },
    "CODES": {"top": (1024,), "bottom": (4096,)},  # [P] section 3.1: 32x32 and 64x64
    "PIXELS": {"": (65_536,)},  # 256x256
}

# The README's table of results: by the beginning of a row, the numbers in the paper's column.
README_COLUMN = {
    "MSE": [0.0047, 0.0050],
    "NLL top": [3.40, 3.41],
    "NLL bottom": [3.45, 3.45],
    "FID": [30, 10, 2],
    "classification accuracy score": [54.83, 58.74, 73.09],
    "from images": [8, 128],  # [S] A.1, TPU cores
}
