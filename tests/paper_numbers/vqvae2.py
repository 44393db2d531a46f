"""[P], [S], [SN] and [CAS]: VQ-VAE-2, and what those leave open."""

from tests.paper_numbers.table import NONE, Table, same

ALL_PRIORS = ("imagenet_top", "imagenet_bottom", "ffhq_top", "ffhq_mid", "ffhq_bottom")
ALL_AUTOENCODERS = ("imagenet_vqvae", "ffhq_vqvae")
CLASSIFIERS = ("imagenet_classifier", "imagenet_cas")
IMAGENET_IMAGES = ("imagenet_vqvae", "imagenet_encode", "imagenet_eval", *CLASSIFIERS)
FFHQ_IMAGES = ("ffhq_vqvae", "ffhq_encode", "ffhq_eval")
ALL_FITS = (*ALL_AUTOENCODERS, *ALL_PRIORS, *CLASSIFIERS)
ALL_EVALS = ("imagenet_eval", "ffhq_eval")

# [S] A.1: brightness, hue, saturation and contrast, and noise half of the time, of FFHQ and what is like it.
FACES_AUGMENTED = {
    "data.augment.brightness": 0.08,
    "data.augment.hue": 0.02,
    "data.augment.saturation": 0.1,
    "data.augment.contrast": 0.1,
    "data.augment.noise_probability": 0.5,
    "data.augment.noise_std": 0.02,
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
        {"data.augment.flip": True, **FACES_AUGMENTED},
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

# [S] tables 1 to 3: input size of the priors, latent layers of the autoencoders; top first.
GRIDS = {
    "imagenet_vqvae": ((32, 32), (64, 64)),
    "ffhq_vqvae": ((32, 32), (64, 64), (128, 128)),
}
