"""The papers' published figures, as data: what this suite's tables and pages print beside their own.

Sources: [P] Razavi, van den Oord, Vinyals, "Generating Diverse High-Fidelity Images with VQ-VAE-2", 2019;
[S] its supplement; [CAS] Ravuri, Vinyals, "Classification Accuracy Score for Conditional Generative Models",
2019. What the paper gives only as curves (Figure 7) is not read off the picture: its text has these figures.
"""

import math
from typing import NamedTuple

PAPER = "VQ-VAE-2 (Razavi et al., 2019)"
DATA = "ImageNet, 256x256"


class TrainValidation(NamedTuple):
    """A figure on training and on validation images; `key` is this suite's, without `_train` or `_val`."""

    key: str
    name: str
    train: float
    validation: float
    unit: str
    source: str


class AccuracyScore(NamedTuple):
    """Accuracies in percent, on real validation images, of a ResNet-50 trained on nothing but the samples.

    `tested_on` says which validation images: "real", or "reconstructed" by the model's autoencoder.
    """

    model: str
    tested_on: str
    top1: float
    top5: float
    source: str


class Approximate(NamedTuple):
    """A figure that the text gives in round numbers; `key` is this suite's name of the metric."""

    name: str
    key: str
    value: float
    source: str


class Quoted(NamedTuple):
    """A figure of another paper, and how sure it is."""

    name: str
    key: str
    value: float
    source: str
    status: str


class RateDistortion(NamedTuple):
    """Distortion in dB of PSNR, rate in bits an image under a learned prior."""

    latents: str
    psnr_db: float
    bits_an_image: float


TABLE_1 = (
    TrainValidation("nll_top", "NLL top", 3.40, 3.41, "nats a code", "[P] Table 1; unit inferred"),
    TrainValidation("nll_bottom", "NLL bottom", 3.45, 3.45, "nats a code", "[P] Table 1; unit inferred"),
    TrainValidation("mse", "MSE", 0.0047, 0.0050, "pixels in [-1, 1]", "[P] Table 1; scale inferred"),
)

TABLE_2 = (
    AccuracyScore("BigGAN-deep", "real", 42.65, 65.92, "[P] Table 2"),
    AccuracyScore("VQ-VAE-2", "real", 54.83, 77.59, "[P] Table 2"),
    AccuracyScore("VQ-VAE-2", "reconstructed", 58.74, 80.98, "[P] Table 2"),
    AccuracyScore("real data", "real", 73.09, 91.47, "[P] Table 2"),
)

# Figure 7 in words: "roughly ~30 to ~10", "an FID ~10 instead of ~2 when simply compressing the originals".
FIGURE_7 = (
    Approximate("samples, all", "fid", 30.0, "[P] section 5.3.1"),
    Approximate("samples, the critic's best", "fid", 10.0, "[P] section 5.3.1"),
    Approximate("reconstructions", "fid", 10.0, "[P] section 5.3.1"),
    Approximate("originals", "fid", 2.0, "[P] section 5.3.1"),
)

SECOND_HAND = "read on a web page about Ravuri and Vinyals (2019), not checked against the paper"
CAS_PAPER = (
    Quoted("VQ-VAE-2", "is", 43.44, "[CAS]", SECOND_HAND),
    Quoted("VQ-VAE-2", "fid", 38.05, "[CAS], FID-50k", SECOND_HAND),
    Quoted("real data", "is", 331.83, "[CAS]", SECOND_HAND),
    Quoted("real data", "fid", 2.47, "[CAS], FID-50k", SECOND_HAND),
)

# [S] Table 5: ImageNet at 128x128, one grid of 32x32; autoencoders without a codebook need far more bits.
SUPPLEMENT_TABLE_5 = (
    RateDistortion("autoencoder, 8 dimensions", 32.41, 36_933),
    RateDistortion("autoencoder, 16 dimensions", 37.33, 62_047),
    RateDistortion("autoencoder, 32 dimensions", 45.92, 115_231),
    RateDistortion("autoencoder, 64 dimensions", 49.80, 196_484),
    RateDistortion("VQ-VAE, 512 codes", 27.19, 4_919),
)

CODES = {"top": 32 * 32, "bottom": 64 * 64}  # an image, [P] section 3.1
PIXELS = 256 * 256


def validation_bits() -> float:
    """Bits an image under both priors: computed from Table 1, as the paper does not give it."""
    nats = sum(row.validation * CODES[row.key.removeprefix("nll_")] for row in TABLE_1 if row.key != "mse")
    return nats / math.log(2)
